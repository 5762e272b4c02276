"""Packed attention in PyTorch: the reference of the kernels and their fallback.

Logits of all pairs of slots of a container are computed, and those of different segments masked, so
it needs memory of size [G, M, T, T], unlike the kernels. It also differs from them in one rule: a
value that is not finite reaches the other segments of its container (0 * nan is nan).

Shapes: G container, T slot, M head, D head width, R side of a table of relative positions.
"""

import torch
from torch import Tensor


def relative_position_bias(position_GT2: Tensor, bias_table_MRR: Tensor) -> Tensor:
    """Look up the bias of every pair of slots.

    Args:
        position_GT2: int32 ``(y, x)`` of each slot.
        bias_table_MRR: [M, 2R + 1, 2R + 1]: bias of (query - key) offsets from -R to R in y and x;
            further offsets are clipped.

    Returns:
        Tensor of shape [M, G, T queries, T keys].
    """
    reach = bias_table_MRR.shape[1] // 2
    position = position_GT2.long()
    offset_GTT2 = position[:, :, None] - position[:, None]
    index_GTT2 = offset_GTT2.clamp(-reach, reach) + reach
    return bias_table_MRR[:, index_GTT2[..., 0], index_GTT2[..., 1]]


def packed_attention_reference(
    query_GTMD: Tensor,
    key_GTMD: Tensor,
    value_GTMD: Tensor,
    segment_GT: Tensor,
    scale: float,
    position_GT2: Tensor | None = None,
    bias_table_MRR: Tensor | None = None,
    key_bias_GT: Tensor | None = None,
) -> Tensor:
    """Apply attention among the slots of a container that share a segment.

    Arguments as in :func:`tokendetr.ops.packed_attention`, with the scale as a number.

    Returns:
        Tensor of shape [G, T, M, D] and the queries' dtype.
    """
    dtype = torch.float64 if query_GTMD.dtype == torch.float64 else torch.float32
    extras = [x for x in (bias_table_MRR, key_bias_GT) if x is not None]
    if query_GTMD.numel() == 0:
        touched = torch.stack([x.sum().to(dtype) for x in (key_GTMD, value_GTMD, *extras)])
        return query_GTMD + (0 * touched.sum()).to(query_GTMD.dtype)
    padding_GT11 = (segment_GT < 0)[:, :, None, None]
    query, key, value = (
        x.to(dtype).masked_fill(padding_GT11, 0) for x in (query_GTMD, key_GTMD, value_GTMD)
    )
    logits_GMTT = torch.einsum("gqmd,gkmd->gmqk", query * scale, key)
    if bias_table_MRR is not None and position_GT2 is not None:
        bias_MGTT = relative_position_bias(position_GT2, bias_table_MRR.to(dtype))
        logits_GMTT = logits_GMTT + bias_MGTT.transpose(0, 1)
    if key_bias_GT is not None:
        logits_GMTT = logits_GMTT + key_bias_GT.to(dtype)[:, None, None]
    valid_GT = segment_GT >= 0
    together_GTT = (segment_GT[:, :, None] == segment_GT[:, None]) & valid_GT[:, None]
    logits_GMTT = logits_GMTT.masked_fill(~together_GTT[:, None], -torch.inf)
    largest = logits_GMTT.detach().amax(dim=-1, keepdim=True)
    share_GMTT = (logits_GMTT - largest.masked_fill(largest == -torch.inf, 0)).exp()
    total = share_GMTT.sum(dim=-1, keepdim=True)
    weight_GMTT = share_GMTT / total.masked_fill(total == 0, 1)
    output_GTMD = torch.einsum("gmqk,gkmd->gqmd", weight_GMTT, value)
    return output_GTMD.contiguous().to(query_GTMD.dtype)
