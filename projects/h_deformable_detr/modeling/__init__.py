"""H-Deformable DETR under upstream's import path."""

from projects.deformable_detr.modeling import DeformableCriterion
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
