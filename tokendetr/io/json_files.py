"""Read JSON files that other programs, or a killed one, may have damaged."""

import json
from pathlib import Path
from typing import Any

from tokendetr.errors import DatasetError

__all__ = ["read_json"]


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        DatasetError: it is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{path} is not readable JSON: {error}. Repair it, or move it away to make a new one"
        ) from error
