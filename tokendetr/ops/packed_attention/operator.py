"""Packed attention: sequences of many lengths, packed into containers of one length.

Each sequence attends to itself.

Shapes: G container, T slot, M head, D head width, R side of a table of relative positions.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from tokendetr.ops.autocast import autocasts, low, wide
from tokendetr.ops.checks import check_dense
from tokendetr.ops.fallback import use_extension
from tokendetr.ops.kernels import call_kernel
from tokendetr.ops.packed_attention.checks import check_packed, packed_scale
from tokendetr.ops.packed_attention.reference import packed_attention_reference


def _run_reference(
    tensors: tuple[Tensor, Tensor, Tensor],
    segment: Tensor,
    scale: float,
    position: Tensor | None,
    biases: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """Run the PyTorch form under the operator's autocast rule: biases stay in float32."""
    kind, is_cast = tensors[0].device.type, autocasts(tensors[0])
    query, key, value = (low(x, kind) for x in tensors) if is_cast else tensors
    if is_cast:
        biases = (
            None if biases[0] is None else wide(biases[0], kind),
            None if biases[1] is None else wide(biases[1], kind),
        )
    check_packed(query, key, value, segment, position, *biases)
    with torch.autocast(kind, enabled=False) if is_cast else nullcontext():
        return packed_attention_reference(query, key, value, segment, scale, position, *biases)


def packed_attention(
    query_GTMD: Tensor,
    key_GTMD: Tensor,
    value_GTMD: Tensor,
    segment_GT: Tensor,
    *,
    scale: float | None = None,
    position_GT2: Tensor | None = None,
    bias_table_MRR: Tensor | None = None,
    key_bias_GT: Tensor | None = None,
) -> Tensor:
    """Apply softmax attention among the slots of a container that share a segment.

    Differentiable in query, key, value, bias table and key bias.

    Args:
        query_GTMD: G containers of T slots, M heads of D channels; float64, float32, bfloat16 or
            float16. G and T may be 0. Strides are free: slices of one projection need no copy.
        key_GTMD: keys, of the queries' shape and dtype.
        value_GTMD: values, of the queries' shape and dtype.
        segment_GT: int32; slots of a container with equal numbers >= 0 attend to each other, in any
            order. Negative numbers are padding: its output is 0, and its values affect neither
            outputs nor gradients.
        scale: factor of the query-key products; by default ``D ** -0.5``.
        position_GT2: int32 ``(y, x)`` of each slot, for the bias table.
        bias_table_MRR: [M, 2R + 1, 2R + 1], added to the logits by the offset query - key, with y
            and x clipped to [-R, R]: tokens keep their places in the image when they are packed, so
            their distances can exceed a window's. Float32 (float64 for float64 queries) or the
            queries' dtype.
        key_bias_GT: added to all logits of a key: with log(n), a token merged from n counts n times
            in the softmax. Same dtypes as the table. A slot whose keys all have -inf outputs 0.

    Returns:
        Tensor of shape [G, T, M, D] and the queries' dtype, summed in float32 (float64 for float64
        queries).

    Raises:
        ValueError: a wrong shape, scale or device; the message names the argument.
        TypeError: a wrong dtype; the message names the argument.

    Source: SPT (arXiv 2410.23608), attention in containers of selected tokens; Swin Transformer,
    relative position bias; Token Transforming (arXiv 2506.05709), log of token sizes as key bias.
    """
    check_dense(query=query_GTMD, key=key_GTMD, value=value_GTMD, segment=segment_GT)
    optional = {"position": position_GT2, "bias_table": bias_table_MRR, "key_bias": key_bias_GT}
    check_dense(**{name: tensor for name, tensor in optional.items() if tensor is not None})
    factor = packed_scale(scale, query_GTMD)
    if use_extension(query_GTMD, "packed_attention"):
        arguments = (query_GTMD, key_GTMD, value_GTMD, segment_GT)
        biases = (position_GT2, bias_table_MRR, key_bias_GT)
        try:
            return call_kernel(torch.ops.tokendetr.packed_attention, *arguments, factor, *biases)
        except ValueError:
            check_packed(*arguments, *biases)  # distinguish a wrong dtype from a wrong value
            raise
    tensors = (query_GTMD, key_GTMD, value_GTMD)
    return _run_reference(tensors, segment_GT, factor, position_GT2, (bias_table_MRR, key_bias_GT))
