"""Files of images: what they are called, and writing them so that a full disk harms none."""

import io
import os
from pathlib import Path
from typing import Any

from PIL import Image

from tokendetr.errors import OutputError
from tokendetr.io.atomic import write_atomically

__all__ = ["IMAGE_SUFFIXES", "save_image"]

_READ_AS_A_RULE = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".jp2")
_PHOTOS_THAT_PILLOW_LACKS = (".heic", ".heif", ".jxl")
IMAGE_SUFFIXES = (*_READ_AS_A_RULE, *_PHOTOS_THAT_PILLOW_LACKS)
"""Ends of the names, in lower case, of files that are images in a folder. A photo that cannot be
read is among them: it is named as an error, not left out in silence."""


def save_image(image: Image.Image, path: str | os.PathLike[str], **options: Any) -> None:
    """Write an image in the format that its file's name ends in, atomically.

    Args:
        image: the image.
        path: the file, such as ``drawn.png`` or ``~/drawn.jpg``; an existing one is replaced.
        options: options of the format, as of Pillow's ``save``.

    Raises:
        OutputError: the name ends in no format that Pillow writes.
        CheckpointWriteError: the file cannot be written; the message has its name and the reason.
    """
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    image_format = Image.registered_extensions().get(suffix, "")
    if image_format not in Image.SAVE:
        raise OutputError(f"{path}: the image's name must end in .jpg or .png, not {suffix!r}")
    content = io.BytesIO()
    image.save(content, format=image_format, **options)
    write_atomically(str(file), content.getbuffer())
