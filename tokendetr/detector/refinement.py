"""Box refinement: add a predicted offset to a query's reference (2-d point or 4-d box).

Shapes: B image, Q query, X = 2 (point: cx, cy) or 4 (box: cx, cy, w, h), all in 0..1 of the
image.
"""

from __future__ import annotations

import torch
from detrex.utils import inverse_sigmoid
from torch import Tensor

REFERENCE_EDGE = 1e-3
"""References are clamped to [edge, 1 - edge] before their logit is taken; detrex's value."""


def refine_boxes(
    offsets_BQ4: Tensor, reference_BQX: Tensor, *, edge: float = REFERENCE_EDGE
) -> Tensor:
    """Return boxes cxcywh in 0..1, the offset added to the reference in logit space.

    With a 2-d reference the center alone is relative; width and height are the sigmoid of the
    offset. References are clamped to [edge, 1 - edge] first. Computed in at least the reference's
    precision, so that half-precision heads give full-precision boxes.
    """
    offsets_BQ4 = offsets_BQ4.to(torch.promote_types(offsets_BQ4.dtype, reference_BQX.dtype))
    anchor_BQX = inverse_sigmoid(reference_BQX, eps=edge)
    if reference_BQX.shape[-1] == 4:
        return (offsets_BQ4 + anchor_BQX).sigmoid()
    center_BQ2 = offsets_BQ4[..., :2] + anchor_BQX
    return torch.cat([center_BQ2, offsets_BQ4[..., 2:]], dim=-1).sigmoid()
