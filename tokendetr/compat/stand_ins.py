"""Which of detectron2 and detrex are this project's stand-ins."""

import importlib
import importlib.util
import os.path

__all__ = ["is_stand_in"]


def is_stand_in(name: str) -> bool:
    """Return whether a package is this project's stand-in; False if it is missing.

    Args:
        name: ``detectron2`` or ``detrex``.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return False
    try:  # it may be installed beside the real packages, which take precedence
        finder = importlib.import_module("tokendetr_standalone.finder")
    except ModuleNotFoundError:
        return False
    found = os.path.dirname(os.path.realpath(spec.origin))
    return found == os.path.realpath(finder.stand_in_folder(name))
