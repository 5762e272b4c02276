"""Shared configs."""

from detrex.config.config import get_config, try_get_key

__all__ = ["get_config", "try_get_key"]
