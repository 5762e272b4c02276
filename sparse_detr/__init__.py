"""Sparse DETR (ICLR 2022): update only the tokens that the decoder is expected to attend to."""

from sparse_detr.attended import AttendedTokens
from sparse_detr.checkpoints import from_published
from sparse_detr.plan import SparsePlan
from sparse_detr.sparsifier import SparseSparsifier
from tokendetr.detector.token_losses import decoder_attention_loss

__all__ = [
    "AttendedTokens",
    "SparsePlan",
    "SparseSparsifier",
    "decoder_attention_loss",
    "from_published",
]
