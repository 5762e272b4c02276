"""DAB-Deformable DETR under upstream's import path."""

from tokendetr.models.dab_deformable_detr import (
    DabDeformableDETR,
    DabDeformableDetrTransformer,
    DabDeformableDetrTransformerDecoder,
    DabDeformableDetrTransformerEncoder,
    TwoStageCriterion,
)

__all__ = [
    "DabDeformableDETR",
    "DabDeformableDetrTransformer",
    "DabDeformableDetrTransformerDecoder",
    "DabDeformableDetrTransformerEncoder",
    "TwoStageCriterion",
]
