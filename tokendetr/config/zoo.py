"""Every lazy config of the project by name: list them, open one, build its model.

A config's name is its file name without ``.py``, for example ``dino_r50_4scale_12ep``; a method's
config that bears the name of a detector's is ``<method>/<name>``. Files under
a ``models/`` folder are parts of configs (a model without data and schedule) and are not listed.
"""

import builtins
import difflib
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig, instantiate
from torch import nn

from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.weights import load_weights
from tokendetr.config.registration import repeatable_registration
from tokendetr.config.tree import PROJECTS_DIR


def _config_files() -> dict[str, Path]:
    files: dict[str, Path] = {}
    found = sorted(PROJECTS_DIR.glob("*/configs/**/*.py"))
    # Detectors first: a name that a method uses again stays theirs.
    for path in sorted(found, key=lambda path: not (_project(path) / "modeling").is_dir()):
        if "models" in path.parent.parts or path.name.startswith("_"):
            continue
        name = path.stem
        if name in files and _project(files[name]) != _project(path):
            name = f"{_project(path).name}/{name}"
        if name in files:
            raise RuntimeError(
                f"two configs are named '{name}': {files[name]} and {path}. Rename one of them."
            )
        files[name] = path
    return files


def _project(path: Path) -> Path:
    """Return the folder of the project that a config belongs to."""
    return PROJECTS_DIR / path.relative_to(PROJECTS_DIR).parts[0]


def list() -> builtins.list[str]:
    """Names of all configs, sorted."""
    return sorted(_config_files())


def get_config_file(name: str) -> Path:
    """Path of a config file.

    Args:
        name: a config's name (``dino_r50_4scale_12ep``).

    Raises:
        KeyError: there is no such config; the message names the nearest ones.
    """
    files = _config_files()
    if name not in files:
        nearest = difflib.get_close_matches(name, files, n=3, cutoff=0.4)
        hint = f"Nearest: {', '.join(nearest)}." if nearest else "See tokendetr.config.zoo.list()."
        raise KeyError(f"there is no config named '{name}'. {hint}")
    return files[name]


def get_config(name: str) -> Any:
    """Load a config by name.

    Returns:
        An omegaconf node with ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and
        ``train``.

    Raises:
        KeyError: there is no such config.
    """
    with repeatable_registration():
        return LazyConfig.load(str(get_config_file(name)))


def load(name: str, checkpoint: str | None = None, device: str = "cpu") -> nn.Module:
    """Build a config's model in evaluation mode.

    Args:
        name: a config's name.
        checkpoint: ``.pth`` or ``.safetensors`` file, URL or ``detectron2://`` address; None keeps
            the random initialisation.
        device: torch device the model is moved to.

    Raises:
        KeyError: there is no such config.
        CheckpointMismatchError: the checkpoint belongs to another model; the message lists keys.
    """
    config = get_config(name)
    config.model.device = device
    model: nn.Module = instantiate(config.model).to(device)
    if checkpoint is not None:
        load_weights(AtomicCheckpointer(model), checkpoint)
    return model.eval()
