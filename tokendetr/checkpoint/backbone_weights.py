"""Map the weights of a bare backbone, under its own or torchvision's names, to a detector's."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["as_backbone", "detectron2_resnet_name"]

_PREFIX = "backbone."
_ENOUGH = 0.5
_TORCHVISION_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(conv1|bn1|fc)\.", r"stem.\1."),
        (r"^layer(\d)\.", lambda match: f"res{int(match.group(1)) + 1}."),
        (r"(^|\.)bn(\d)\.", r"\1conv\2.norm."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
    )
)


def as_backbone(
    weights: Mapping[str, Any], model_state: Mapping[str, Tensor]
) -> dict[str, Any] | None:
    """Return the weights of a bare backbone under a detector's names, None for other weights.

    ImageNet checkpoints (of Swin, of torchvision's ResNets) name weights from the backbone's root;
    a detector has them below ``backbone``. A file counts as a bare backbone if none of its names
    exists in the detector as it is, and if it covers at least half of the detector's backbone.

    Args:
        weights: the file's weights by name.
        model_state: the detector's state dict.

    Returns:
        All of the file's weights, prefixed; those that the detector lacks (an ImageNet head) stay
        in for the report. Counters of batch norms are dropped.
    """
    wanted = {name for name in model_state if name.startswith(_PREFIX)}
    if not wanted or any(name in model_state for name in weights):
        return None
    kept = {name: value for name, value in weights.items() if "num_batches_tracked" not in name}
    for rename in (str, detectron2_resnet_name):
        renamed = {_PREFIX + rename(name): value for name, value in kept.items()}
        if len(wanted & renamed.keys()) >= _ENOUGH * len(wanted):
            return renamed
    return None


def detectron2_resnet_name(name: str) -> str:
    """Return detectron2's name for a weight of torchvision's ResNets.

    ``layer1.0.downsample.1.weight`` becomes ``res2.0.shortcut.norm.weight``.
    """
    for pattern, replacement in _TORCHVISION_RULES:
        name = pattern.sub(replacement, name)
    return name
