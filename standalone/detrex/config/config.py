"""Access to the shared configs, and a helper to read keys that may be missing."""

from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

CONFIG_ROOT = Path(__file__).resolve().parent / "configs"
"""Folder that ``get_config`` paths are relative to."""

_MISSING = object()


def try_get_key(cfg: DictConfig, *keys: str, default: Any = None) -> Any:
    """Return the value of the first of ``keys`` (dotted paths) in the config, else ``default``."""
    for key in keys:
        value = OmegaConf.select(cfg, key, default=_MISSING)
        if value is not _MISSING:
            return value
    return default


def get_config(config_path: str) -> Any:
    """Load a shared config, such as ``get_config("common/train.py").train``.

    Args:
        config_path: path below the ``configs`` folder.

    Returns:
        The config: its top-level names as attributes.

    Raises:
        RuntimeError: there is no such config; the message lists the available ones.
    """
    path = CONFIG_ROOT / config_path
    if not path.is_file():
        available = sorted(str(p.relative_to(CONFIG_ROOT)) for p in CONFIG_ROOT.rglob("*.py"))
        raise RuntimeError(
            f"{config_path} not available in {CONFIG_ROOT}; available configs: {available}"
        )
    return LazyConfig.load(str(path))
