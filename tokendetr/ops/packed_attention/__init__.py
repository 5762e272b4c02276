"""Packed attention: public function, PyTorch form, checks, cost."""

from tokendetr.ops import library
from tokendetr.ops.packed_attention.flops import packed_attention_flops
from tokendetr.ops.packed_attention.operator import packed_attention
from tokendetr.ops.packed_attention.reference import (
    packed_attention_reference,
    relative_position_bias,
)

if library.library_facts().load_error is None:
    from tokendetr.ops.packed_attention import registration  # noqa: F401

__all__ = [
    "packed_attention",
    "packed_attention_flops",
    "packed_attention_reference",
    "relative_position_bias",
]
