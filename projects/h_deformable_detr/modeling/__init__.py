"""H-Deformable DETR under upstream's import path."""

from projects.h_deformable_detr.modeling.deformable_criterion import DeformableCriterion
from projects.h_deformable_detr.modeling.h_deformable_detr import HDeformableDETR
from projects.h_deformable_detr.modeling.h_deformable_transformer import (
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
