"""DAB-Deformable DETR under upstream's import path."""

from projects.dab_deformable_detr.modeling.dab_deformable_detr import DabDeformableDETR
from projects.dab_deformable_detr.modeling.dab_deformable_transformer import (
    DabDeformableDetrTransformer,
    DabDeformableDetrTransformerDecoder,
    DabDeformableDetrTransformerEncoder,
)
from projects.dab_deformable_detr.modeling.two_stage_criterion import TwoStageCriterion

__all__ = [
    "DabDeformableDETR",
    "DabDeformableDetrTransformer",
    "DabDeformableDetrTransformerDecoder",
    "DabDeformableDetrTransformerEncoder",
    "TwoStageCriterion",
]
