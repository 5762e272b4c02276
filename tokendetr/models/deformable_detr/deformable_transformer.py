"""Deformable DETR's transformer under upstream's names and arguments.

Queries are learned or two-stage proposals, with fixed positions.

Source: Deformable DETR, arXiv 2010.04159.
"""

from tokendetr.detector import DeformableDecoder, ReferencePointTransformer
from tokendetr.encoder import TokenEncoder


class DeformableDetrTransformerEncoder(TokenEncoder):
    """Dense deformable encoder under upstream's name and arguments."""


class DeformableDetrTransformerDecoder(DeformableDecoder):
    """Decoder with fixed query positions; refines boxes if the detector attaches box heads."""


class DeformableDetrTransformer(ReferencePointTransformer):
    """Encoder, query initialization, decoder."""
