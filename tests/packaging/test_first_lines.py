"""The first lines of the pages, outside the clone, in a fresh environment with the wheels alone.

PyTorch and the other requirements are the running interpreter's; the kernels are left out.
"""

import functools
import re

import pytest

from tests.packaging.environments import WITHOUT_KERNELS, Environment, build, copy_checkout
from tests.source_tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Makes the training of the page short.
SHORTER = (
    '"train.output_dir=output/cells"',
    '"train.output_dir=output/cells", "train.max_iter=2", "train.device=cpu", '
    '"dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0", '
    '"dataloader.test.num_workers=0"',
)


def first_block(page: str) -> str:
    """Return the first Python block of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)[0]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return tmp_path_factory.mktemp("an empty folder")


@pytest.fixture(scope="module")
def python(empty, tmp_path_factory):
    """Return a function that runs Python of a fresh environment beside images and a data set."""
    folder = tmp_path_factory.mktemp("a reader")
    checkout = copy_checkout(folder / "checkout" / "tokendetr")
    environment = Environment(folder / "environment")
    environment.share_requirements()
    for project in (checkout, checkout / "standalone"):
        environment.install(build(project, folder / project.name, **WITHOUT_KERNELS))
    run = functools.partial(environment.start, cwd=empty)
    images = ["--root", "my_cells", "--train-images", "8", "--val-images", "2"]
    run("-m", "tokendetr", "make-shapes", *images)
    (empty / "photo.jpg").write_bytes((empty / "my_cells" / "val" / "000001.jpg").read_bytes())
    return run


def test_three_lines_detect_objects(python, empty):
    shown = python("-c", first_block("README.md") + "print(detector, results, sep='\\n')")
    assert (empty / "detections.png").stat().st_size > 10_000
    assert "dino_shapes.safetensors" in shown and "photo.jpg" in shown
    where = python("-c", "import tokendetr; print(tokendetr.__file__)")
    assert str(ROOT) not in where and "site-packages" in where


def test_five_lines_train_on_a_folder_and_use_the_detector(python, empty):
    code = first_block("docs/own_data.md")
    assert SHORTER[0] in code
    python("-c", code.replace(*SHORTER))
    run = empty / "output" / "cells"
    assert (run / "model_final.pth").is_file() and (run / "config.yaml").is_file()
