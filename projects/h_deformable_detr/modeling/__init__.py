"""H-Deformable DETR under upstream's import path."""

from tokendetr.models.h_deformable_detr import (
    DeformableCriterion,
    HDeformableDETR,
    HDeformableDetrTransformer,
    HDeformableDetrTransformerDecoder,
    HDeformableDetrTransformerEncoder,
)

__all__ = [
    "DeformableCriterion",
    "HDeformableDETR",
    "HDeformableDetrTransformer",
    "HDeformableDetrTransformerDecoder",
    "HDeformableDetrTransformerEncoder",
]
