"""Operations and parameters that Mask R-CNN adds to a backbone.

As in detectron2's ``common/models/mask_rcnn_fpn.py`` and ``cascade_rcnn.py``, for COCO's classes. A
multiply-add counts 1; norms and pooling are not counted.
"""

from collections.abc import Sequence
from math import ceil

PROPOSALS, MASK_PROPOSALS = 1000, 100
"""Boxes per image in the box heads and in the mask head."""

_WIDTH, _HIDDEN, _ANCHORS, _CLASSES = 256, 1024, 3, 80


def mask_rcnn_macs(
    height: int,
    width: int,
    channels: Sequence[int],
    *,
    cascade: bool = False,
) -> int:
    """Return the cost of pyramid, proposal network, box heads and mask head for one image.

    Args:
        height: of the image in pixels.
        width: likewise.
        channels: of the backbone's four outputs, at strides 4 to 32.
        cascade: three class-agnostic box heads in sequence (Cascade R-CNN).
    """
    sizes = [ceil(height / stride) * ceil(width / stride) for stride in (4, 8, 16, 32, 64)]
    pyramid = sum(
        size * _WIDTH * (own + 9 * _WIDTH) for size, own in zip(sizes[:4], channels, strict=True)
    )
    proposals = sum(sizes) * (9 * _WIDTH**2 + 5 * _WIDTH * _ANCHORS)
    box_head = _WIDTH * 49 * _HIDDEN + _HIDDEN**2 + _HIDDEN * _box_outputs(cascade)
    box_heads = PROPOSALS * box_head * (3 if cascade else 1)
    mask_head = 14 * 14 * 40 * _WIDTH**2 + 28 * 28 * _WIDTH * _CLASSES
    return pyramid + proposals + box_heads + MASK_PROPOSALS * mask_head


def mask_rcnn_parameters(channels: Sequence[int], *, cascade: bool = False) -> int:
    """Return the number of parameters of the same parts."""
    convolution = 9 * _WIDTH**2 + _WIDTH
    pyramid = sum(own * _WIDTH + _WIDTH + convolution for own in channels)
    proposals = convolution + (_WIDTH + 1) * 5 * _ANCHORS
    box_head = (_WIDTH * 49 + 1) * _HIDDEN + (_HIDDEN + 1) * (_HIDDEN + _box_outputs(cascade))
    mask_head = 4 * convolution + 4 * _WIDTH**2 + _WIDTH + (_WIDTH + 1) * _CLASSES
    return pyramid + proposals + box_head * (3 if cascade else 1) + mask_head


def _box_outputs(cascade: bool) -> int:
    return _CLASSES + 1 + (4 if cascade else 4 * _CLASSES)
