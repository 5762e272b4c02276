"""Deformable DETR."""

from tokendetr.models.deformable_detr.deformable_criterion import DeformableCriterion
from tokendetr.models.deformable_detr.deformable_detr import DeformableDETR
from tokendetr.models.deformable_detr.deformable_transformer import (
    DeformableDetrTransformer,
    DeformableDetrTransformerDecoder,
    DeformableDetrTransformerEncoder,
)

__all__ = [
    "DeformableCriterion",
    "DeformableDETR",
    "DeformableDetrTransformer",
    "DeformableDetrTransformerDecoder",
    "DeformableDetrTransformerEncoder",
]
