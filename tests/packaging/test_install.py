"""Installed into a fresh environment, everything works from an empty folder.

PyTorch and the other requirements are the running interpreter's; the kernels are left out, which
other tests build. About two minutes on two idle cores.
"""

import functools
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.packaging.environments import WITHOUT_KERNELS, Environment, build, copy_checkout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PREDICTION = """
import numpy as np
from tokendetr import Predictor, load_config, zoo
model = zoo.load("dynamic_dino_shapes")
predictor = Predictor.from_config(load_config("dynamic_dino_shapes", trained=True))
image = np.zeros((128, 160, 3), np.uint8)
image[32:96, 48:112, 0] = 255
found = predictor(image)
print(len(found) > 0, float(found.scores[0]) > 0, type(model).__module__.split(".")[0])
"""
UPSTREAM_CONFIG = """
from detectron2.config import LazyCall as L, LazyConfig
from detrex.config import get_config
from projects.dino.modeling import DINO
print(DINO.__module__, get_config("common/train.py").train.max_iter)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return copy_checkout(tmp_path_factory.mktemp("a checkout") / "tokendetr")


@pytest.fixture(params=["wheel", "editable", "sdist"])
def installed(request, checkout, tmp_path):
    """Install both distributions into a fresh environment, in a folder with a space in its name."""
    environment = Environment(tmp_path / "an environment")
    environment.share_requirements()
    for project in (checkout, checkout / "standalone"):
        output = tmp_path / request.param / project.name
        if request.param == "sdist":
            wheel = build(unpacked_sdist(project, output), output / "wheel", **WITHOUT_KERNELS)
        else:
            wheel = build(project, output, request.param, **WITHOUT_KERNELS)
        environment.install(wheel)
    return environment


def unpacked_sdist(project: Path, output: Path) -> Path:
    archive = build(project, output, "sdist", **WITHOUT_KERNELS)
    with tarfile.open(archive) as content:
        content.extractall(output, filter="data")
    return Path(str(archive).removesuffix(".tar.gz"))


def test_it_works_from_an_empty_folder(installed, tmp_path):
    empty = tmp_path / "an empty folder"
    empty.mkdir()
    python = functools.partial(installed.start, cwd=empty)
    python("-c", "from detectron2.config import LazyConfig")
    assert python("-c", UPSTREAM_CONFIG).split() == ["tokendetr.models.dino.dino", "90000"]
    assert python("-c", PREDICTION).split() == ["True", "True", "tokendetr"]
    names = python("-m", "tokendetr", "list").splitlines()
    assert "dino_r50_4scale_12ep" in names
    train = ["-m", "tokendetr.cli.train_net", "--config-file", "dynamic_dino_shapes"]
    python(*train, "train.max_iter=2", "train.eval_period=0", "dataloader.train.total_batch_size=2")
    run = empty / "output" / "dynamic_dino_shapes"
    assert (run / "model_final.pth").is_file()
    evaluated = python(*train, "--eval-only", "train.output_dir=evaluation")
    assert "bbox" in evaluated and (empty / "evaluation").is_dir()
    console = installed.python.with_name("tokendetr")
    done = subprocess.run([console, "--version"], cwd=empty, capture_output=True, text=True)
    assert done.stdout.split() == ["tokendetr", "0.1.0"]


def test_the_source_distribution_has_all_that_the_wheel_needs(checkout, tmp_path):
    names = []
    for project in (checkout, unpacked_sdist(checkout, tmp_path / "sdist")):
        shutil.rmtree(project / "build", ignore_errors=True)
        wheel = build(project, tmp_path / str(len(names)), **WITHOUT_KERNELS)
        names.append(sorted(zipfile.ZipFile(wheel).namelist()))
    assert names[0] == names[1]
