"""Every lazy config of the project by name, with its weights: list them, open one, build its model.

A config's name is its file name without ``.py``, for example ``dino_r50_4scale_12ep``; a method's
config that bears the name of a detector's is ``<method>/<name>``. Files under
a ``models/`` folder are parts of configs (a model without data and schedule) and are not listed.
They are found inside the installed package or the source checkout, whatever the working folder is
and whichever package ``projects`` is importable.
"""

import builtins
import logging
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from torch import nn

from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.weights import load_weights
from tokendetr.config.registration import load_repeatably
from tokendetr.config.targets import check_targets
from tokendetr.config.tree import config_file, config_files, shipped_weights
from tokendetr.encoder.keep_ratio import set_keep_ratio

__all__ = ["SHIPPED", "get_checkpoint", "get_config", "get_config_file", "list", "load"]

SHIPPED = "shipped"
"""As a checkpoint: the trained weights that come with the config."""

logger = logging.getLogger(__name__)


def list() -> builtins.list[str]:
    """Names of all configs, sorted."""
    return sorted(config_files())


def get_config_file(name: str) -> Path:
    """Path of a config file.

    Args:
        name: a config's name (``dino_r50_4scale_12ep``), or one that it had before.

    Raises:
        KeyError: there is no such config; the message names the nearest ones.
    """
    return config_file(name)


def get_checkpoint(name: str) -> str | None:
    """Path of the trained weights that come with a config, None where none do.

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
            takes the weights that come with the config; where none do, they are random, and
            a warning says so. None asks for random weights.
        device: torch device the model is moved to.
        keep: share of tokens that the encoder updates, for configs whose encoder has a sparsifier
            with a keep ratio; None: the config's.

    Raises:
        KeyError: there is no such config.
        ConfigError: this installation of detectron2 or detrex lacks a part of the model.
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
                "no trained weights come with %s: they are random (checkpoint=FILE loads some)",
                name,
            )
    if checkpoint is not None:
        load_weights(AtomicCheckpointer(model), checkpoint)
    return model.eval()
