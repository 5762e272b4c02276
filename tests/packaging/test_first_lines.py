"""The first lines of the pages, outside the clone, in a fresh environment with the wheels alone.

PyTorch and the other requirements are the running interpreter's; the kernels are left out.
"""

import os
import re
import subprocess
import sys
import sysconfig

import pytest
from environments import ROOT, Environment, build, copy_checkout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

KEPT = ("PATH", "OMP_NUM_THREADS")
# A training that a test has no time for, made short.
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
def python(tmp_path_factory):
    """Return a function that runs Python of a fresh environment beside images and a data set."""
    folder = tmp_path_factory.mktemp("a reader")
    checkout = copy_checkout(folder / "checkout" / "tokendetr")
    environment = Environment(folder / "environment")
    (environment.packages / "zz_requirements.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    for project in (checkout, checkout / "standalone"):
        wheel = build(project, folder / project.name, TOKENDETR_NO_EXTENSION="1")
        command = [sys.executable, "-m", "pip", "--python", environment.python, "install"]
        command += ["--no-deps", "--no-index", "--quiet", wheel]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
    empty = folder / "empty"
    empty.mkdir()

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [environment.python, *arguments],
            cwd=empty,
            env={name: os.environ[name] for name in KEPT if name in os.environ},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    images = ["--root", "my_cells", "--train-images", "8", "--val-images", "2"]
    run("-m", "tokendetr", "make-shapes", *images)
    (empty / "photo.jpg").write_bytes((empty / "my_cells" / "val" / "000001.jpg").read_bytes())
    run.folder = empty
    return run


def test_three_lines_detect_objects(python):
    shown = python("-c", first_block("README.md") + "print(detector, results, sep='\\n')")
    assert (python.folder / "detections.png").stat().st_size > 10_000
    assert "dino_shapes.safetensors" in shown and "photo.jpg" in shown
    where = python("-c", "import tokendetr; print(tokendetr.__file__)")
    assert str(ROOT) not in where and "site-packages" in where


def test_five_lines_train_on_a_folder_and_use_the_detector(python):
    code = first_block("docs/own_data.md")
    assert SHORTER[0] in code
    python("-c", code.replace(*SHORTER))
    run = python.folder / "output" / "cells"
    assert (run / "model_final.pth").is_file() and (run / "config.yaml").is_file()
