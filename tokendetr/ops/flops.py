"""What the operators cost, counted as the counters of fvcore and of PyTorch count."""

from collections.abc import Sequence

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def ms_deform_attn_flops(
    locations_shape: Sequence[int],
    head_width: int,
) -> int:
    """Return the multiply-adds that fvcore counts for the ``grid_sample`` form of the operator.

    A bilinear sample is 4 multiply-adds per channel. The weighted sum of the samples is an
    element-wise product and a reduction there, and fvcore counts neither.

    Args:
        locations_shape: [B, Q, M, L, P, 2], the shape of the locations or offsets.
        head_width: channels per head, D.
    """
    batch, queries, heads, levels, points = locations_shape[:5]
    return 4 * batch * queries * heads * levels * points * head_width


def packed_attention_flops(segment_GT: Tensor, channels: int) -> int:
    """Return the multiply-adds of packed attention's two products, segment by segment.

    A segment of n slots is two products of n * n * channels. Where the numbers of the segments are
    not known (meta and fake tensors), each container counts as one full segment.

    Args:
        segment_GT: segment of each slot, negative for padding.
        channels: of all heads together, M * D.
    """
    containers, slots = segment_GT.shape
    if isinstance(segment_GT, FakeTensor) or segment_GT.is_meta:
        return 2 * channels * containers * slots * slots
    valid_GT = segment_GT >= 0
    container = valid_GT.nonzero()[:, 0]
    numbers = segment_GT[valid_GT].long() * max(containers, 1) + container
    sizes = numbers.unique(return_counts=True)[1]
    return 2 * channels * int((sizes * sizes).sum())
