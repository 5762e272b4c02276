"""Unlabeled images in seeded batches: a batch depends on the seed and its number alone."""

import hashlib
import logging
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog

from tokendetr.errors import FewImagesError
from tokendetr.predict import Predictor, find_images, read_rgb

__all__ = ["UnlabeledImages"]

HELD_BACK_SHARE = 0.15
HELD_BACK_LIMITS = (2, 60)
"""Share of the images that are held back, and its least and greatest number of images."""
MOST_IMAGES = 10_000
"""Of larger sets a random sample of this size is used: every image is decoded to find unreadable
ones, and a fit sees only a few thousand."""

logger = logging.getLogger(__name__)


class UnlabeledImages:
    """Images to fit to, and held-back images to measure on.

    Args:
        files: image files, in any order; a file counts once. Of more than :data:`MOST_IMAGES`, a
            random sample of that size is used.
        inputs: converts an image to a detector's input (resized, with the right channel order).
        seed: of the sample, of the held-back images and of the order.
        batch_size: images per batch.

    Raises:
        FewImagesError: fewer than four files are readable images.
        ValueError: a batch size below 1.
    """

    def __init__(
        self, files: Sequence[Path], inputs: Predictor, *, seed: int = 0, batch_size: int = 8
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        found = sorted({path.resolve() for path in files})
        if len(found) > MOST_IMAGES:
            logger.info("Using a random %d of %d images", MOST_IMAGES, len(found))
            found = sorted(random.Random(seed).sample(found, MOST_IMAGES))
        with ThreadPoolExecutor() as threads:
            readable = list(compress(found, threads.map(_is_image, found)))
        if len(readable) < 2 * HELD_BACK_LIMITS[0]:
            raise FewImagesError(
                f"fitting needs at least {2 * HELD_BACK_LIMITS[0]} readable images, "
                f"got {len(readable)} of {len(found)} files"
            )
        random.Random(seed).shuffle(readable)
        low, high = HELD_BACK_LIMITS
        held = min(max(low, round(HELD_BACK_SHARE * len(readable))), high, len(readable) // 2)
        self.held_back, self.fitted = readable[:held], readable[held:]
        self.batch_size = batch_size
        self.seed = seed
        self._inputs = inputs

    @classmethod
    def from_folders(
        cls, folders: Sequence[str], inputs: Predictor, *, seed: int = 0, batch_size: int = 8
    ) -> "UnlabeledImages":
        """Collect the images of folders, files, glob patterns, or registered data sets.

        A name denotes a data set if no such path exists. If training and test images lie in one
        folder, the names of their data sets tell them apart.

        Raises:
            FileNotFoundError: one of them has no images.
            FewImagesError: all together have too few.
        """
        names = [name for name in folders if not Path(name).exists()]
        registered = set(names) & set(DatasetCatalog.list())
        files = [
            Path(record["file_name"])
            for name in sorted(registered)
            for record in DatasetCatalog.get(name)
        ]
        others = [name for name in folders if name not in registered]
        if others:
            files += find_images(others)
        return cls(files, inputs, seed=seed, batch_size=batch_size)

    def read(self, path: Path) -> dict[str, Any]:
        """Return a detector's input."""
        return {**self._inputs.inputs(read_rgb(path)), "file_name": str(path)}

    def batch(self, number: int, end: int | None = None) -> list[dict[str, Any]]:
        """Return batch ``number`` of a sequence that has every image once per epoch.

        Args:
            number: of the batch, from 0.
            end: number of images after which the sequence ends, and a smaller batch with it; None:
                it is endless.
        """
        count, first = len(self.fitted), number * self.batch_size
        places = range(first, min(first + self.batch_size, end or first + self.batch_size))
        orders = {place // count: self._order(place // count) for place in places}
        return [self.read(self.fitted[orders[place // count][place % count]]) for place in places]

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.fitted)))
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        return order

    def digest(self) -> str:
        """Return a hash of the files, their order, and the first one as the detector sees it."""
        names = b"\n".join(bytes(path.resolve()) for path in (*self.held_back, *self.fitted))
        first_CHW = self.read(self.held_back[0])["image"]
        size = repr(tuple(first_CHW.shape)).encode()
        content = hashlib.sha256(names + size + first_CHW.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()[:16]

    def held_back_batches(self) -> list[list[Path]]:
        """Return the held-back files, in batches."""
        size = self.batch_size
        return [self.held_back[i : i + size] for i in range(0, len(self.held_back), size)]


def _is_image(path: Path) -> bool:
    try:
        return read_rgb(path).size > 0
    except OSError as error:
        logger.warning("%s is left out: %s", path, error)
        return False
