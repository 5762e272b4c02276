"""Multi-scale deformable attention: public functions, PyTorch form, checks, cost."""

from tokendetr.ops import library
from tokendetr.ops.ms_deform_attn.flops import ms_deform_attn_flops
from tokendetr.ops.ms_deform_attn.operator import ms_deform_attn, ms_deform_attn_fused
from tokendetr.ops.ms_deform_attn.reference import (
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
    sampling_locations,
)

if library.library_facts().load_error is None:
    from tokendetr.ops.ms_deform_attn import registration  # noqa: F401

__all__ = [
    "ms_deform_attn",
    "ms_deform_attn_flops",
    "ms_deform_attn_fused",
    "ms_deform_attn_fused_reference",
    "ms_deform_attn_reference",
    "sampling_locations",
]
