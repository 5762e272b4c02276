"""The project's lazy configs by name: list them, load one, build its model with trained weights.

:mod:`tokendetr.config.files` says how configs are named. They are found inside the installed
package or the source checkout, independently of the working folder and of other packages named
``projects``.
"""

import builtins
import logging
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from torch import nn

from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.weights import load_weights
from tokendetr.config.files import config_file, config_files, shipped_weights
from tokendetr.config.registration import load_repeatably
from tokendetr.config.targets import check_targets
from tokendetr.encoder.keep_ratio import set_keep_ratio

__all__ = ["SHIPPED", "get_checkpoint", "get_config", "get_config_file", "list", "load"]

SHIPPED = "shipped"
"""Value of ``checkpoint`` that stands for the trained weights that come with the config."""

logger = logging.getLogger(__name__)


def list() -> builtins.list[str]:
    """Return the names of all configs, sorted."""
    return sorted(config_files())


def get_config_file(name: str) -> Path:
    """Return the path of a config file.

    Args:
        name: a config's name (``dino_r50_4scale_12ep``) or former name.

    Raises:
        KeyError: there is no such config; the message names the nearest ones.
    """
    return config_file(name)


def get_checkpoint(name: str) -> str | None:
    """Return the path of the trained weights that come with a config, None if there are none.

    Raises:
        KeyError: there is no such config.
    """
    return shipped_weights(config_file(name))


def get_config(name: str) -> Any:
    """Load a config by name.

    Returns:
        An omegaconf node with ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and
        ``train``.

    Raises:
        KeyError: there is no such config.
    """
    return load_repeatably(str(get_config_file(name)))


def load(
    name: str,
    checkpoint: str | None = SHIPPED,
    device: str = "cpu",
    *,
    keep: float | None = None,
) -> nn.Module:
    """Build a config's model with trained weights, in evaluation mode.

    Args:
        name: a config's name.
        checkpoint: ``.pth`` or ``.safetensors`` file, URL or ``detectron2://`` address. The default
            loads the weights that come with the config; if there are none, the weights are random
            and a warning is logged. None also gives random weights.
        device: torch device that the model is moved to.
        keep: share of tokens that the encoder updates, in (0, 1], for encoders whose sparsifier has
            a keep ratio; None for the config's own.

    Raises:
        KeyError: there is no such config.
        ConfigError: the installed detectron2 or detrex lacks a part of the model.
        NotSparsifiableError: ``keep`` is given and the model's encoder has no keep ratio.
        CheckpointMismatchError: the checkpoint belongs to another model; the message lists keys.
    """
    config = get_config(name)
    config.model.device = device
    check_targets(config.model)
    model: nn.Module = instantiate(config.model).to(device)
    if keep is not None:
        set_keep_ratio(model, keep)
    if checkpoint == SHIPPED:
        checkpoint = get_checkpoint(name)
        if checkpoint is None:
            logger.warning(
                "no trained weights come with %s: its weights are random (use checkpoint=FILE)",
                name,
            )
    if checkpoint is not None:
        load_weights(AtomicCheckpointer(model), checkpoint)
    return model.eval()
