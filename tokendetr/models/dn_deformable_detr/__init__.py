"""DN-Deformable DETR."""

from tokendetr.models.dn_deformable_detr.dn_criterion import DNCriterion
from tokendetr.models.dn_deformable_detr.dn_deformable_detr import DNDeformableDETR
from tokendetr.models.dn_deformable_detr.dn_deformable_transformer import (
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
