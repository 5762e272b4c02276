"""DAB-Deformable DETR."""

from tokendetr.models.dab_deformable_detr.dab_deformable_detr import DabDeformableDETR
from tokendetr.models.dab_deformable_detr.dab_deformable_transformer import (
    DabDeformableDetrTransformer,
    DabDeformableDetrTransformerDecoder,
    DabDeformableDetrTransformerEncoder,
)
from tokendetr.models.dab_deformable_detr.two_stage_criterion import TwoStageCriterion

__all__ = [
    "DabDeformableDETR",
    "DabDeformableDetrTransformer",
    "DabDeformableDetrTransformerDecoder",
    "DabDeformableDetrTransformerEncoder",
    "TwoStageCriterion",
]
