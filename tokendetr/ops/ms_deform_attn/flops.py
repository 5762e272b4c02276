"""Cost of multi-scale deformable attention in fvcore's convention."""

from collections.abc import Sequence


def ms_deform_attn_flops(
    locations_shape: Sequence[int],
    head_width: int,
) -> int:
    """Return the multiply-adds that fvcore counts for the ``grid_sample`` form of the operator.

    A bilinear sample is 4 multiply-adds per channel. The weighted sum of the samples is an
    element-wise product and a reduction, of which fvcore counts neither.

    Args:
        locations_shape: [B, Q, M, L, P, 2], the shape of the locations or offsets.
        head_width: channels per head, D.
    """
    batch, queries, heads, levels, points = locations_shape[:5]
    return 4 * batch * queries * heads * levels * points * head_width
