"""DN-Deformable DETR's transformer under upstream's names and arguments.

It is that of DAB-Deformable DETR, with denoising queries in front of the matching ones.

Source: DN-DETR, arXiv 2203.01305.
"""

from tokendetr.detector import AnchorEncoder, AnchorTransformer, ScaledAnchorDecoder


class DNDeformableDetrTransformerEncoder(AnchorEncoder):
    """Dense deformable encoder under upstream's name and arguments."""


class DNDeformableDetrTransformerDecoder(ScaledAnchorDecoder):
    """Anchor decoder under upstream's name and arguments."""


class DNDeformableDetrTransformer(AnchorTransformer):
    """Anchors (learned, or two-stage proposals) and noised boxes, decoded together."""
