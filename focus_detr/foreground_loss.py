"""Targets and loss of the foreground selector: tokens inside boxes of their level's size.

Shapes: B image, N all tokens.
"""

from collections.abc import Sequence
from typing import Literal

from detrex.layers import box_cxcywh_to_xyxy
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from tokendetr.encoder.aux_losses import ImageTargets
from tokendetr.tokens import LevelLayout, box_labels

Distance = Literal["farthest_side", "half_size"]
DISTANCES = ("farthest_side", "half_size")
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


def foreground_labels(
    targets: Sequence[ImageTargets],
    layout: LevelLayout,
    *,
    strides: Sequence[int],
    size_ranges: Sequence[tuple[float, float]],
    distance: Distance = "farthest_side",
) -> Tensor:
    """Return bool [B, N], True for tokens with their center inside a box of their level's sizes.

    Args:
        targets: annotations of each image.
        layout: the batch.
        strides: pixels per token of each level, finest first.
        size_ranges: per level, see :func:`tokendetr.tokens.grid_labels`.
        distance: the quantity that a size range bounds: "farthest_side", the distance from the
            token to the box's farthest side, or "half_size", half the box's larger side.
    """
    boxes_xyxy_px = []
    for target in targets:
        height, width = target.image_size
        boxes_cxcywh_norm = target.boxes_cxcywh_norm
        size = boxes_cxcywh_norm.new_tensor([width, height, width, height])
        boxes_xyxy_px.append(box_cxcywh_to_xyxy(boxes_cxcywh_norm * size))
    return box_labels(
        boxes_xyxy_px,
        layout,
        strides=strides,
        rule="center" if distance == "farthest_side" else "center_half_size",
        size_ranges=size_ranges,
    )


def foreground_loss(logits_BN: Tensor, labels_BN: Tensor, counted_BN: Tensor | None) -> Tensor:
    """Return the focal loss: sum over an image's tokens / positive tokens, mean over images.

    Args:
        logits_BN: foreground logits.
        labels_BN: bool, see :func:`foreground_labels`.
        counted_BN: bool, the tokens with a loss; None: all.

    Source: Focus-DETR, arXiv 2307.12612, equation 7; normalized as in the published code.
    """
    loss_BN = sigmoid_focal_loss(
        logits_BN.float(), labels_BN.float(), alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA
    )
    if counted_BN is not None:
        loss_BN = loss_BN.masked_fill(~counted_BN, 0.0)
    positives_B = labels_BN.sum(dim=1).clamp_min(1)
    return (loss_BN.sum(dim=1) / positives_B).mean()
