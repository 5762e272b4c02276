"""Attention with keys weighted by token sizes, and the attention that tokens receive.

Shapes: B sequence (an image, or a window of one), M head, Q query, N token, n block of queries, D
head width, R side of a table of relative positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tokendetr.ops import packed_attention
from tokendetr.ops.fallback import use_extension

WEIGHTS_AT_ONCE = 1 << 18
"""Attention weights per block when their column sums are needed."""
NOT_A_KEY = -1e4
"""Bias of keys that are padding: their weight is 0 in any precision. -inf would give NaN for a
query without any other key."""


@dataclass(frozen=True)
class Observed:
    """Statistics of the attention before a reduction.

    Attributes:
        received_BN: float32, attention that each token receives from all real queries, mean over
            heads; carries no gradient.
        class_BN: float32, attention that it receives from the first token.
        key_BND: its key, mean over heads.
    """

    received_BN: Tensor
    class_BN: Tensor
    key_BND: Tensor


def size_bias(size_BN: Tensor | None, valid_BN: Tensor | None, *, first: int = 0) -> Tensor | None:
    """Return the bias of each key's logits, float32 [B, 1, 1, first + N].

    With log(n), a token merged from n counts n times in the softmax: proportional attention.

    Args:
        size_BN: number of original tokens in each; None: no bias.
        valid_BN: bool, False = not a token; None if all are.
        first: number of tokens of size 1 in front (class and register tokens).

    Returns:
        Log sizes, :data:`NOT_A_KEY` for what is not a token; None if there is nothing to add.

    Source: Token Transforming, arXiv 2506.05709, equation 7.
    """
    if size_BN is None and valid_BN is None:
        return None
    if size_BN is None:
        assert valid_BN is not None
        bias_BN = torch.zeros_like(valid_BN, dtype=torch.float32)
    else:
        # The log of an invalid token's size 0 must not reach the gradient.
        size_BN = size_BN if valid_BN is None else size_BN.masked_fill(~valid_BN, 1.0)
        bias_BN = size_BN.float().log()
    if valid_BN is not None:
        bias_BN = bias_BN.masked_fill(~valid_BN, NOT_A_KEY)
    return F.pad(bias_BN, (first, 0))[:, None, None]


def attend(
    query_BMND: Tensor,
    key_BMND: Tensor,
    value_BMND: Tensor,
    *,
    scale: float,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend by packed attention if possible, else by PyTorch's fused kernels.

    Args:
        query_BMND: queries.
        key_BMND: keys.
        value_BMND: values.
        scale: factor of the logits.
        bias: added to the logits, broadcastable to [B, M, N, N].
        dropout: probability of dropping a weight.
    """
    is_of_keys = bias is None or bias.shape[1:3] == (1, 1)
    if is_of_keys and query_BMND.shape == key_BMND.shape and can_pack(query_BMND, dropout):
        key_bias_BN = None if bias is None else bias[:, 0, 0].expand(query_BMND.shape[0], -1)
        return attend_packed(query_BMND, key_BMND, value_BMND, scale=scale, key_bias_BN=key_bias_BN)
    mask = None if bias is None else bias.to(query_BMND.dtype)
    return F.scaled_dot_product_attention(
        query_BMND, key_BMND, value_BMND, attn_mask=mask, dropout_p=dropout, scale=scale
    )


def can_pack(query_BMND: Tensor, dropout: float) -> bool:
    """Return True if :func:`attend_packed` is possible and known to be faster.

    On CPUs it takes a quarter to a half of the time of PyTorch's kernels, and less with a bias for
    every pair of tokens. It was not measured on other devices, and has no dropout.
    """
    is_cpu = query_BMND.device.type == "cpu"
    return is_cpu and dropout == 0 and use_extension(query_BMND, "packed_attention")


def attend_packed(
    query_BMND: Tensor,
    key_BMND: Tensor,
    value_BMND: Tensor,
    *,
    scale: float,
    segment_BN: Tensor | None = None,
    position_BN2: Tensor | None = None,
    bias_table_MRR: Tensor | None = None,
    key_bias_BN: Tensor | None = None,
) -> Tensor:
    """Attend by :func:`tokendetr.ops.packed_attention`, with one container per sequence.

    Args: those of that function; ``segment_BN`` None lets all tokens attend to all, and
        ``key_bias_BN`` may have any floating dtype.
    """
    batch, _, tokens, _ = query_BMND.shape
    if segment_BN is None:
        segment_BN = query_BMND.new_zeros((batch, tokens), dtype=torch.int32)
    if key_bias_BN is not None:
        key_bias_BN = key_bias_BN.to(torch.promote_types(torch.float32, query_BMND.dtype))
    out_BNMD = packed_attention(
        query_BMND.transpose(1, 2),
        key_BMND.transpose(1, 2),
        value_BMND.transpose(1, 2),
        segment_BN,
        scale=scale,
        position_GT2=position_BN2,
        bias_table_MRR=bias_table_MRR,
        key_bias_GT=key_bias_BN,
    )
    return out_BNMD.transpose(1, 2)


def attend_and_sum(
    query_BMND: Tensor,
    key_BMND: Tensor,
    value_BMND: Tensor,
    *,
    scale: float,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    valid_BN: Tensor | None = None,
) -> tuple[Tensor, Observed]:
    """Attend, and sum the columns of the attention weights.

    The weights are computed once for both, in blocks of sequences and queries.

    Args:
        query_BMND, key_BMND, value_BMND, scale, bias, dropout: as for :func:`attend`.
        valid_BN: bool, False = queries whose attention is not summed.

    Returns:
        The attention's output [B, M, N, D], and its statistics.

    Source: Token Transforming, arXiv 2506.05709, equation 2.
    """
    batch, heads, tokens, _ = query_BMND.shape
    if torch.compiler.is_compiling():
        # Blocks would make the graph depend on the batch size.
        settings = (scale, bias, dropout, valid_BN)
        sums = _attend_and_sum(query_BMND, key_BMND, value_BMND, *settings, rows=tokens)
        return sums[0], Observed(sums[1], sums[2], key_BMND.mean(dim=1))
    batch, heads, tokens = int(batch), int(heads), int(tokens)
    at_once = max(1, WEIGHTS_AT_ONCE // max(1, heads * tokens * tokens))
    rows = max(1, WEIGHTS_AT_ONCE // max(1, min(at_once, batch) * heads * tokens))
    parts = [
        _attend_and_sum(
            query_BMND[start : start + at_once],
            key_BMND[start : start + at_once],
            value_BMND[start : start + at_once],
            scale,
            bias if bias is None or bias.shape[0] == 1 else bias[start : start + at_once],
            dropout,
            None if valid_BN is None else valid_BN[start : start + at_once],
            rows=rows,
        )
        for start in range(0, max(batch, 1), at_once)
    ]
    out_BMND, received_BN, class_BN = map(torch.cat, zip(*parts, strict=True))
    return out_BMND, Observed(received_BN, class_BN, key_BMND.mean(dim=1))


def _attend_and_sum(
    query_BMND: Tensor,
    key_BMND: Tensor,
    value_BMND: Tensor,
    scale: float,
    bias: Tensor | None,
    dropout: float,
    valid_BN: Tensor | None,
    *,
    rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, received and class attention, computed for ``rows`` queries at once."""
    batch, heads, tokens, _ = query_BMND.shape
    received_BN = query_BMND.new_zeros(batch, tokens, dtype=torch.float32)
    class_BN = received_BN
    outputs = []
    key_BMDN = (key_BMND * scale).transpose(2, 3)
    for start in range(0, int(tokens), rows):
        logits_BMnN = query_BMND[:, :, start : start + rows] @ key_BMDN
        if bias is not None:
            whole = bias.shape[-2] == 1
            logits_BMnN = logits_BMnN + (bias if whole else bias[..., start : start + rows, :])
        weights_BMnN = logits_BMnN.softmax(dim=-1, dtype=torch.float32)
        summed_BMnN = weights_BMnN.detach()
        if start == 0:
            class_BN = summed_BMnN[:, :, 0].mean(dim=1)
        if valid_BN is not None:
            summed_BMnN = summed_BMnN * valid_BN[:, None, start : start + rows, None]
        received_BN = received_BN + summed_BMnN.sum(dim=2).mean(dim=1)
        weights_BMnN = F.dropout(weights_BMnN.to(value_BMND.dtype), dropout, training=dropout > 0)
        outputs.append(weights_BMnN @ value_BMND)
    return torch.cat(outputs, dim=2), received_BN, class_BN
