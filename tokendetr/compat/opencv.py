"""OpenCV says only in its build information whether it can show windows."""

import re
from typing import Any

__all__ = ["has_windows"]


def has_windows(cv2: Any) -> bool:
    """Whether an imported OpenCV can show pictures; the headless package cannot."""
    gui = re.search(r"GUI:\s*(\S+)", cv2.getBuildInformation())
    return gui is None or gui[1].upper() != "NONE"
