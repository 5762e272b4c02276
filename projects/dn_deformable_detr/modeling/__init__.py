"""DN-Deformable DETR under upstream's import path."""

from tokendetr.models.dn_deformable_detr import (
    DNCriterion,
    DNDeformableDETR,
    DNDeformableDetrTransformer,
    DNDeformableDetrTransformerDecoder,
    DNDeformableDetrTransformerEncoder,
)

__all__ = [
    "DNCriterion",
    "DNDeformableDETR",
    "DNDeformableDetrTransformer",
    "DNDeformableDetrTransformerDecoder",
    "DNDeformableDetrTransformerEncoder",
]
