"""Configs that come with the package."""

from .model_zoo import get_checkpoint_url, get_config, get_config_file

__all__ = ["get_checkpoint_url", "get_config", "get_config_file"]
