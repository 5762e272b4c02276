"""DINO under upstream's import path."""

from projects.dino.modeling.dino import DINO
from projects.dino.modeling.dino_criterion import DINOCriterion
from projects.dino.modeling.dino_transformer import (
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
