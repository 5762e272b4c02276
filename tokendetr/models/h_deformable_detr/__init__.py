"""H-Deformable DETR."""

from tokendetr.models.h_deformable_detr.deformable_criterion import DeformableCriterion
from tokendetr.models.h_deformable_detr.h_deformable_detr import HDeformableDETR
from tokendetr.models.h_deformable_detr.h_deformable_transformer import (
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
