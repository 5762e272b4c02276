"""Sparse DETR (ICLR 2022): update only the tokens that the decoder is expected to attend to."""

from sparse_detr.checkpoints import from_published
from sparse_detr.sparsifier import SparsePlan, SparseSparsifier
from tokendetr.detector.token_losses import decoder_attention_loss

__all__ = [
    "SparsePlan",
    "SparseSparsifier",
    "decoder_attention_loss",
    "from_published",
]
