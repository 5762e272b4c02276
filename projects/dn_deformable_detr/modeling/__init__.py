"""DN-Deformable DETR under upstream's import path."""

from projects.dn_deformable_detr.modeling.dn_criterion import DNCriterion
from projects.dn_deformable_detr.modeling.dn_deformable_detr import DNDeformableDETR
from projects.dn_deformable_detr.modeling.dn_deformable_transformer import (
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
