"""DAB-Deformable DETR's transformer under upstream's names and arguments.

Source: DAB-DETR, arXiv 2201.12329, with deformable attention (its section on DAB-Deformable-DETR).
"""

from tokendetr.detector import AnchorEncoder, AnchorTransformer, ScaledAnchorDecoder


class DabDeformableDetrTransformerEncoder(AnchorEncoder):
    """Dense deformable encoder."""


class DabDeformableDetrTransformerDecoder(ScaledAnchorDecoder):
    """Decoder whose query positions follow the refined anchors."""


class DabDeformableDetrTransformer(AnchorTransformer):
    """Learned anchors, or the encoder's best proposals, decoded."""
