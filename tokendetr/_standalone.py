"""Fall back to the bundled subset of detectron2 / detrex where they are not installed."""

import importlib.util
import logging
import sys
from pathlib import Path

STANDALONE_DIR = Path(__file__).resolve().parent.parent / "standalone"
PACKAGES = ("detectron2", "detrex")


def provide_missing_packages() -> list[str]:
    """Append ``standalone/`` to the end of ``sys.path`` when detectron2 or detrex cannot be found.

    Real installations always win, because they come earlier on the path. Calling this again changes
    nothing.

    Returns:
        The names of the packages that ``standalone/`` provides from now on.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return []
    if not STANDALONE_DIR.is_dir():
        raise ModuleNotFoundError(
            f"{' and '.join(missing)} cannot be imported and the bundled subset {STANDALONE_DIR} "
            "does not exist. Install detectron2 and detrex, or run from a source checkout."
        )
    sys.path.append(str(STANDALONE_DIR))
    importlib.invalidate_caches()
    logging.getLogger(__name__).info(
        "%s not installed: using the bundled subset in %s", " and ".join(missing), STANDALONE_DIR
    )
    return missing
