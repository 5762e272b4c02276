"""A shapes data set of a few images, instead of the machine's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tokendetr.data.shapes import ShapesSpec, ensure_shapes, register_shapes


@contextmanager
def small_shapes(
    factory: pytest.TempPathFactory, *, num_train: int, num_val: int
) -> Iterator[Path]:
    """Make the data set, and have everything that looks for data sets find this one."""
    folder = factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        spec = ShapesSpec(num_train=num_train, num_val=num_val)
        yield ensure_shapes(folder / "shapes", spec, workers=1)
    register_shapes()
