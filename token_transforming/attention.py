"""Attention that weighs keys by token sizes, and the attention that tokens receive.

Shapes: B sequence (an image, or a window of one), M head, Q query, N token, n block of queries, D
head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

WEIGHTS_AT_ONCE = 1 << 18
"""Attention weights that exist together where their column sums are needed."""
NOT_A_KEY = -1e4
"""Bias of keys that are not tokens: their weight is 0 in any precision; -inf would make NaN where a
query has no other key."""


@dataclass(frozen=True)
class Attended:
    """Result of :func:`attend_and_sum`.

    Attributes:
        out_BMND: the attention's output.
        received_BN: float32, the attention each token receives from all real queries, the heads'
            mean (without gradient).
        class_BN: float32, what it receives from the first token.
    """

    out_BMND: Tensor
    received_BN: Tensor
    class_BN: Tensor


def size_bias(size_BN: Tensor | None, valid_BN: Tensor | None, *, first: int = 0) -> Tensor | None:
    """Return what is added to the logits of each key, float32 [B, 1, 1, first + N].

    Args:
        size_BN: how many tokens each one stands for; None: nothing is added.
        valid_BN: bool, False = not a token; None where all are.
        first: tokens of size 1 that come before (class and register tokens).

    Returns:
        log sizes, :data:`NOT_A_KEY` for what is not a token; None where nothing needs adding.

    Source: Token Transforming, arXiv 2506.05709, equation 7.
    """
    if size_BN is None and valid_BN is None:
        return None
    if size_BN is None:
        assert valid_BN is not None
        bias_BN = torch.zeros_like(valid_BN, dtype=torch.float32)
    else:
        # An invalid token has size 0: its logarithm must not reach the gradient.
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
    """Attend with PyTorch's fused kernels.

    Args:
        query_BMND: queries.
        key_BMND: keys.
        value_BMND: values.
        scale: factor of the logits.
        bias: added to the logits, broadcastable to [B, M, N, N].
        dropout: probability of dropping a weight.
    """
    mask = None if bias is None else bias.to(query_BMND.dtype)
    return F.scaled_dot_product_attention(
        query_BMND, key_BMND, value_BMND, attn_mask=mask, dropout_p=dropout, scale=scale
    )


def attend_and_sum(
    query_BMND: Tensor,
    key_BMND: Tensor,
    value_BMND: Tensor,
    *,
    scale: float,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    valid_BN: Tensor | None = None,
) -> Attended:
    """Attend, and add up the columns of the attention.

    The weights are computed once, in blocks of sequences and queries that serve both.

    Args:
        query_BMND, key_BMND, value_BMND, scale, bias, dropout: as for :func:`attend`.
        valid_BN: bool, False = queries whose attention does not count in the sums.

    Source: Token Transforming, arXiv 2506.05709, equation 2.
    """
    batch, heads, tokens, _ = query_BMND.shape
    at_once = max(1, WEIGHTS_AT_ONCE // max(1, heads * tokens * tokens))
    parts = [
        _attend_and_sum(
            query_BMND[start : start + at_once],
            key_BMND[start : start + at_once],
            value_BMND[start : start + at_once],
            scale,
            bias if bias is None or len(bias) == 1 else bias[start : start + at_once],
            dropout,
            None if valid_BN is None else valid_BN[start : start + at_once],
        )
        for start in range(0, max(batch, 1), at_once)
    ]
    return Attended(
        torch.cat([part.out_BMND for part in parts]),
        torch.cat([part.received_BN for part in parts]),
        torch.cat([part.class_BN for part in parts]),
    )


def _attend_and_sum(
    query_BMND: Tensor,
    key_BMND: Tensor,
    value_BMND: Tensor,
    scale: float,
    bias: Tensor | None,
    dropout: float,
    valid_BN: Tensor | None,
) -> Attended:
    """Do the same for some of the sequences."""
    batch, heads, tokens, _ = query_BMND.shape
    rows = max(1, WEIGHTS_AT_ONCE // max(1, batch * heads * tokens))
    received_BN = query_BMND.new_zeros(batch, tokens, dtype=torch.float32)
    class_BN = received_BN
    outputs = []
    key_BMDN = (key_BMND * scale).transpose(2, 3)
    for start in range(0, tokens, rows):
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
    return Attended(torch.cat(outputs, dim=2), received_BN, class_BN)
