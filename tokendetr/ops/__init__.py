"""Operators with compiled kernels and PyTorch fallbacks.

Each operator is a subpackage that mirrors its folder in ``csrc/``. As attributes of this package
``ms_deform_attn`` and ``packed_attention`` are the functions; modules of the subpackages are
imported by ``from tokendetr.ops.ms_deform_attn.reference import ...``.
"""

from tokendetr.ops.fallback import extension_available, use_reference
from tokendetr.ops.library import LibraryFacts, library_facts
from tokendetr.ops.ms_deform_attn import (
    ms_deform_attn,
    ms_deform_attn_flops,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
    sampling_locations,
)
from tokendetr.ops.packed_attention import (
    packed_attention,
    packed_attention_flops,
    packed_attention_reference,
    relative_position_bias,
)

__all__ = [
    "LibraryFacts",
    "extension_available",
    "library_facts",
    "ms_deform_attn",
    "ms_deform_attn_flops",
    "ms_deform_attn_fused",
    "ms_deform_attn_fused_reference",
    "ms_deform_attn_reference",
    "packed_attention",
    "packed_attention_flops",
    "packed_attention_reference",
    "relative_position_bias",
    "sampling_locations",
    "use_reference",
]
