"""Criteria: matching and losses in one module."""

from detrex.modeling.criterion.base_criterion import BaseCriterion
from detrex.modeling.criterion.criterion import SetCriterion

__all__ = ["BaseCriterion", "SetCriterion"]
