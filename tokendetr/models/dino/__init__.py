"""DINO."""

from tokendetr.models.dino.dino import DINO
from tokendetr.models.dino.dino_criterion import DINOCriterion
from tokendetr.models.dino.dino_transformer import (
    DINOTransformer,
    DINOTransformerDecoder,
    DINOTransformerEncoder,
)

__all__ = [
    "DINO",
    "DINOCriterion",
    "DINOTransformer",
    "DINOTransformerDecoder",
    "DINOTransformerEncoder",
]
