"""Deformable DETR under upstream's import path."""

from projects.deformable_detr.modeling.deformable_criterion import DeformableCriterion
from projects.deformable_detr.modeling.deformable_detr import DeformableDETR
from projects.deformable_detr.modeling.deformable_transformer import (
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
