"""Import hotcoco, an optional package that reads label formats and analyzes COCO results.

Checked with hotcoco 1.3. It is imported on first use.
"""

import importlib
from typing import Any

from tokendetr.errors import ConfigError

__all__ = ["load_hotcoco"]


def load_hotcoco(purpose: str) -> Any:
    """Import and return the package.

    Args:
        purpose: what needs it, for the message.

    Raises:
        ConfigError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module("hotcoco")
    except ImportError as error:
        raise ConfigError(f"{purpose} needs hotcoco: pip install hotcoco") from error
