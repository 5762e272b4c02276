"""Find configs of the model zoo and their checkpoints."""

from pathlib import Path
from typing import Any, NoReturn

from detectron2.config import LazyConfig

__all__ = ["get_checkpoint_url", "get_config", "get_config_file"]

_CONFIG_DIR = Path(__file__).resolve().parent / "configs"


def _not_bundled(what: str) -> NoReturn:
    raise RuntimeError(
        f"{what} not available in Model Zoo! This machine runs the bundled subset of detectron2, "
        "which has none of its model configs and checkpoints; install detectron2 to use them."
    )


def get_config_file(config_path: str) -> str:
    """Return the path of a config of the zoo, such as "COCO-Detection/retinanet_R_50_FPN_1x.py".

    Raises:
        RuntimeError: when it is not there.
    """
    file = _CONFIG_DIR / config_path
    if not file.is_file():
        _not_bundled(config_path)
    return str(file)


def get_checkpoint_url(config_path: str) -> str:
    """Return the URL of the checkpoint that was trained with a config of the zoo.

    Raises:
        RuntimeError: always, as no config with a checkpoint is bundled.
    """
    _not_bundled(f"A checkpoint of {config_path}")


def get_config(config_path: str, trained: bool = False) -> Any:
    """Load a config of the zoo.

    Args:
        config_path: name of a lazy config relative to the zoo's folder.
        trained: set ``train.init_checkpoint`` to the checkpoint trained with it.

    Raises:
        RuntimeError: when it is not there.
    """
    cfg = LazyConfig.load(get_config_file(config_path))
    if trained:
        url = get_checkpoint_url(config_path)
        if "train" in cfg and "init_checkpoint" in cfg.train:
            cfg.train.init_checkpoint = url
    return cfg
