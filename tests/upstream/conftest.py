"""A small shapes data set, instead of the machine's."""

import pytest

from tests.small_shapes import small_shapes
from tokendetr.data.shapes import register_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory):
    """40 images for evaluation, where the project's configs look for the data set."""
    with small_shapes(tmp_path_factory, num_train=2, num_val=40) as root:
        register_shapes()
        yield root
