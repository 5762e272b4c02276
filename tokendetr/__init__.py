"""Efficient detection transformers for detectron2 and detrex.

Importing this package makes ``detectron2`` and ``detrex`` importable on any machine: where one of
them is not installed, the subset in ``standalone/`` takes its place, see
:mod:`tokendetr._standalone`.
"""

import importlib
from typing import Any

from tokendetr._standalone import provide_missing_packages

__version__ = "0.1.0"

provide_missing_packages()


def __getattr__(name: str) -> Any:
    """Import public names when they are first used."""
    if name == "zoo":
        return importlib.import_module("tokendetr.config.zoo")
    raise AttributeError(f"module 'tokendetr' has no attribute {name!r}")
