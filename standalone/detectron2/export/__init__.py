"""Helpers to trace models whose inputs and outputs are not plain tensors."""

from .flatten import TracingAdapter

__all__ = ["TracingAdapter"]
