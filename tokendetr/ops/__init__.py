"""Operators with compiled kernels and plain PyTorch fallbacks."""

from tokendetr.ops.flops import ms_deform_attn_flops
from tokendetr.ops.ms_deform_attn import (
    extension_available,
    ms_deform_attn,
    ms_deform_attn_fused,
    use_reference,
)
from tokendetr.ops.reference import ms_deform_attn_fused_reference, ms_deform_attn_reference

__all__ = [
    "extension_available",
    "ms_deform_attn",
    "ms_deform_attn_flops",
    "ms_deform_attn_fused",
    "ms_deform_attn_fused_reference",
    "ms_deform_attn_reference",
    "use_reference",
]
