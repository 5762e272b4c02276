"""Which of detectron2 and detrex are this project's stand-ins."""

import importlib.util
from pathlib import Path

__all__ = ["is_stand_in"]


def is_stand_in(name: str) -> bool:
    """Return whether a package is this project's stand-in; False if it is missing.

    Args:
        name: ``detectron2`` or ``detrex``.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return False
    beside = Path(spec.origin).resolve().parents[1] / "tokendetr_standalone"
    return beside.is_dir() or "tokendetr_standalone" in spec.origin
