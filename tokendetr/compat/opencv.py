"""Tell whether OpenCV can open windows; it reports that in its build information alone."""

import re
from typing import Any

__all__ = ["has_windows"]


def has_windows(cv2: Any) -> bool:
    """Return whether an imported OpenCV can open windows; the headless package cannot."""
    gui = re.search(r"GUI:\s*(\S+)", cv2.getBuildInformation())
    return gui is None or gui[1].upper() != "NONE"
