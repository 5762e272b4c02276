"""Read the frames of a video file or a camera.

Shapes: H, W image.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendetr.errors import CutOffVideoError

__all__ = ["load_opencv", "read_frames"]

TOLERANCE = 0.02
"""Share of its announced frames that a whole video may lack: containers state rough numbers."""


def load_opencv() -> Any:
    """Import OpenCV.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError("videos need OpenCV: pip install opencv-python-headless") from error
    return cv2


def read_frames(source: str | int) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Yield every frame, uint8 RGB [H, W, 3], and the frame rate in Hz.

    Args:
        source: a video file, or the number of a camera, which never ends.

    Raises:
        ImportError: OpenCV is not installed.
        OSError: the source cannot be opened.
        CutOffVideoError: the file is cut off or damaged; it was read as far as possible.
    """
    cv2 = load_opencv()
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        if isinstance(source, str) and "://" not in source and not os.path.exists(source):
            raise FileNotFoundError(f"there is no video {source}")
        raise OSError(f"{source} is not a video that OpenCV can read")
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    number = 0
    try:
        while True:
            is_read, frame_bgr_HWC = capture.read()
            if not is_read:
                break
            number += 1
            yield np.ascontiguousarray(frame_bgr_HWC[:, :, ::-1]), rate
    finally:
        capture.release()
    if announced - number > max(2, TOLERANCE * announced):
        raise CutOffVideoError(
            f"{source} ends after {number} of {announced:.0f} frames: the file is cut off or "
            "damaged; the results end there too"
        )
