"""Deformable DETR's transformer under upstream's names and arguments: learned queries or two-stage
proposals, with fixed query positions.

Source: Deformable DETR, arXiv 2010.04159.
"""

from tokendetr.detector import DeformableDecoder, PositionedTransformer
from tokendetr.encoder import TokenEncoder


class DeformableDetrTransformerEncoder(TokenEncoder):
    """Dense deformable encoder under upstream's name and arguments."""


class DeformableDetrTransformerDecoder(DeformableDecoder):
    """Decoder with fixed query positions; refines boxes where the detector gives it box heads."""


class DeformableDetrTransformer(PositionedTransformer):
    """Encoder, query initialisation, decoder."""
