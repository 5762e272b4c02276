"""Dynamic DETR (ICML 2025): merge similar tokens, and keep most in the important levels."""

from dynamic_detr.budget import TokenBudget
from dynamic_detr.flops import encoder_macs, query_token_macs, saved_macs
from dynamic_detr.importance import LevelImportance, record_level_importance
from dynamic_detr.plan import DynamicPlan
from dynamic_detr.sparsifier import DynamicSparsifier

__all__ = [
    "DynamicPlan",
    "DynamicSparsifier",
    "LevelImportance",
    "TokenBudget",
    "encoder_macs",
    "query_token_macs",
    "record_level_importance",
    "saved_macs",
]
