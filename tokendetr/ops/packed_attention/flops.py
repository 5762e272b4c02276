"""Cost of packed attention in the convention of fvcore's and PyTorch's counters."""

from torch import Tensor

from tokendetr.compat.torch_private import FakeTensor


def packed_attention_flops(segment_GT: Tensor, channels: int) -> int:
    """Return the multiply-adds of packed attention's two matrix products.

    A segment of n slots has two products of n * n * channels. If the segments have no values (meta
    and fake tensors), each container counts as one full segment.

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
