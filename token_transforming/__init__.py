"""Token Transforming: fewer tokens in existing vision transformers, without training."""

from token_transforming.block_states import BlockStates, TokenState
from token_transforming.fitting import NoMapsError, fit_recovery
from token_transforming.reduction import Candidates, Reduced, reduce_tokens
from token_transforming.report import TransformReport, UnsupportedModelError
from token_transforming.settings import METHODS, SELECTIONS, Reduction, merging_schedule
from token_transforming.transforming import restore, supported, transform

__all__ = [
    "METHODS",
    "SELECTIONS",
    "Candidates",
    "BlockStates",
    "NoMapsError",
    "Reduced",
    "Reduction",
    "TokenState",
    "TransformReport",
    "UnsupportedModelError",
    "fit_recovery",
    "merging_schedule",
    "reduce_tokens",
    "restore",
    "supported",
    "transform",
]
