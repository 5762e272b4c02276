"""Look up the parts of configs that detrex does not ship."""

from typing import Any

from tokendetr.config.files import PROJECTS_DIR
from tokendetr.config.registration import load_repeatably

FRAGMENTS_DIR = PROJECTS_DIR / "common"


def get_fragment(name: str) -> Any:
    """Load a shared part of this project's configs; ``detrex.config.get_config`` loads detrex's.

    Args:
        name: path below ``projects/common``, such as ``data/lvis_detr.py``.

    Raises:
        FileNotFoundError: there is no such part; the message lists the existing ones.
    """
    path = FRAGMENTS_DIR / name
    if not path.is_file():
        files = FRAGMENTS_DIR.rglob("*.py")
        known = sorted(file.relative_to(FRAGMENTS_DIR).as_posix() for file in files)
        raise FileNotFoundError(f"no shared config {name!r}; there are {', '.join(known)}")
    return load_repeatably(str(path))
