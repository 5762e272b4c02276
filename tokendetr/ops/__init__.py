"""Operators with compiled kernels and plain PyTorch fallbacks."""

from tokendetr.ops.fallback import extension_available, use_reference
from tokendetr.ops.flops import ms_deform_attn_flops, packed_attention_flops
from tokendetr.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused
from tokendetr.ops.packed_attention import packed_attention
from tokendetr.ops.reference import ms_deform_attn_fused_reference, ms_deform_attn_reference
from tokendetr.ops.reference_packed import packed_attention_reference, relative_position_bias

__all__ = [
    "extension_available",
    "ms_deform_attn",
    "ms_deform_attn_flops",
    "ms_deform_attn_fused",
    "ms_deform_attn_fused_reference",
    "ms_deform_attn_reference",
    "packed_attention",
    "packed_attention_flops",
    "packed_attention_reference",
    "relative_position_bias",
    "use_reference",
]
