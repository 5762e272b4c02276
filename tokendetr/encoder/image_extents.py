"""Which images of a batch a backbone is looking at, and how large they are without padding.

Backbones are called with one padded tensor. One that treats padding differently asks
:func:`shown`; who calls it with something else than the whole batch says so with :func:`showing`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor

from tokendetr.encoder.aux_losses import current

Size = tuple[int, int]


@dataclass(frozen=True)
class Canvas:
    """The images of one backbone call.

    Attributes:
        rows: position of each image in the model's batch.
        sizes: (height, width) of each image in pixels; the rest of the canvas is padding.
    """

    rows: tuple[int, ...]
    sizes: tuple[Size, ...]


_SHOWN: ContextVar[Canvas | None] = ContextVar("tokendetr_canvas", default=None)


@contextmanager
def showing(rows: Sequence[int], sizes: Sequence[Size]) -> Iterator[None]:
    """Say which images the backbone gets that is called inside the ``with`` block.

    Args:
        rows: positions in the model's batch.
        sizes: their (height, width) in pixels.
    """
    canvas = Canvas(tuple(rows), tuple((int(height), int(width)) for height, width in sizes))
    token = _SHOWN.set(canvas)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def shown(images_BCHW: Tensor) -> Canvas:
    """Return what a backbone's input shows.

    Where nobody said it, the running supervised model's inputs tell; where they do not fit either,
    every image is taken to fill the canvas.

    Args:
        images_BCHW: the backbone's input.
    """
    batch, _, height, width = images_BCHW.shape
    canvas = _SHOWN.get()
    if canvas is not None and len(canvas.rows) == batch:
        return canvas
    context = current()
    sizes = None if context is None else context.image_sizes
    rows = tuple(range(batch))
    if (
        sizes is not None
        and len(sizes) == batch
        and all(h <= height and w <= width for h, w in sizes)
    ):
        return Canvas(rows, sizes)
    return Canvas(rows, ((height, width),) * batch)
