"""The deformable encoder: one loop for the dense encoder and for every sparse-token method."""

from tokendetr.encoder.bypass import AffineBypass
from tokendetr.encoder.forward_context import (
    ForwardContext,
    current_pass,
    image_extents,
    observe,
    record_tokens,
)
from tokendetr.encoder.keep_ratio import set_keep_ratio
from tokendetr.encoder.pixel_decoder import sparsify_pixel_decoder
from tokendetr.encoder.sparsifier import (
    EncoderContext,
    TokenPlan,
    TokenSparsifier,
    ValuePolicy,
)
from tokendetr.encoder.token_encoder import TokenEncoder

__all__ = [
    "AffineBypass",
    "EncoderContext",
    "ForwardContext",
    "TokenEncoder",
    "TokenPlan",
    "TokenSparsifier",
    "ValuePolicy",
    "current_pass",
    "image_extents",
    "observe",
    "record_tokens",
    "set_keep_ratio",
    "sparsify_pixel_decoder",
]
