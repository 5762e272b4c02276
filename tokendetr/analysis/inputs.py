"""Build a config's model and inputs for measurements, also without its GPU, data set or weights."""

import copy
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig, open_dict
from torch import nn

from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.weights import load_weights
from tokendetr.config.load import load_config
from tokendetr.config.model import model_of
from tokendetr.io.atomic import write_atomically
from tokendetr.layers.cpu import optimize

__all__ = [
    "build_measured_model",
    "load_measured_config",
    "loaded_inputs",
    "synthetic_targets",
    "write_json",
]

TARGETS_PER_IMAGE = 8

logger = logging.getLogger(__name__)


def load_measured_config(config_file: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a config with strict overrides for an available device.

    Without a GPU, a config for one is measured on the CPU, unless the overrides request the GPU.

    Raises:
        FileNotFoundError, ConfigError: as for :func:`tokendetr.config.load_config`.
        ValueError: the overrides request a GPU, and there is none.
    """
    cfg = load_config(config_file, overrides, trained=True)
    device = str(cfg.train.device)
    if device.startswith("cuda") and not torch.cuda.is_available():
        if any(override.lstrip("+").startswith("train.device=") for override in overrides):
            raise ValueError(f"train.device={device}, but PyTorch sees no GPU here")
        logger.warning("There is no GPU here: measuring on the CPU (train.device=cpu)")
        return load_config(config_file, [*overrides, "train.device=cpu"], trained=True)
    return cfg


def build_measured_model(cfg: DictConfig, overrides: Sequence[str] = ()) -> nn.Module:
    """Build a config's model in evaluation mode, optimized for CPUs as in evaluations.

    The weights are random unless the overrides name a ``train.init_checkpoint``, since time and
    operations rarely depend on them. So a config's own checkpoint need not exist.

    Raises:
        ConfigError: the model cannot be built.
        FileNotFoundError, CheckpointError: the checkpoint cannot be used.
    """
    model = model_of(cfg)
    named = any(o.lstrip("+").startswith("train.init_checkpoint=") for o in overrides)
    if named and cfg.train.init_checkpoint:
        load_weights(
            AtomicCheckpointer(model),
            cfg.train.init_checkpoint,
            strict=cfg.train.init_checkpoint_strict,
        )
    optimize(model)
    return model.eval()


def loaded_inputs(
    cfg: DictConfig, count: int, *, batch_size: int = 1
) -> Iterator[list[dict[str, Any]]]:
    """Yield the first ``count`` batches of a config's test data.

    Raises:
        FileNotFoundError: the data set does not exist; the message says how to measure without it.
    """
    node = copy.deepcopy(cfg.dataloader.test)
    with open_dict(node):
        node.num_workers = 0
        if batch_size > 1:
            node.batch_size = batch_size
    try:
        loader = instantiate(node)
    except (FileNotFoundError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        raise FileNotFoundError(
            f"{message}. Set DETECTRON2_DATASETS to the folder of the data sets, or measure on "
            "synthetic images with --input-size HEIGHT WIDTH"
        ) from error
    return islice(loader, count)


def synthetic_targets(
    images: Sequence[dict[str, Any]], *, num_classes: int
) -> list[dict[str, Any]]:
    """Return images with ground truth: :data:`TARGETS_PER_IMAGE` boxes each, seeded.

    Args:
        images: detectron2's inputs.
        num_classes: classes are drawn from [0, num_classes).
    """
    generator = torch.Generator().manual_seed(0)
    records = []
    for image in images:
        height, width = image["image"].shape[-2:]
        size = torch.tensor([width, height, width, height])
        corner, extent = torch.rand(2, TARGETS_PER_IMAGE, 2, generator=generator) * 0.5
        boxes_xyxy_px = torch.cat([corner, corner + extent.clamp_min(0.02)], dim=1) * size
        classes = torch.randint(0, num_classes, (TARGETS_PER_IMAGE,), generator=generator)
        target = Instances((height, width), gt_boxes=Boxes(boxes_xyxy_px), gt_classes=classes)
        records.append({**image, "instances": target})
    return records


def write_json(result: Any, target: str) -> None:
    """Write ``result`` as JSON to a file, or to stdout if ``target`` is "-"."""
    text = json.dumps(result, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        write_atomically(target, text.encode())
