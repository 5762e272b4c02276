"""Configs, weights and detectors are found from any folder, beside any other ``projects``."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.environments import Environment
from tests.source_tree import ROOT
from tokendetr.config import load_config, target_name

CONFIGS = """
from tokendetr import zoo
from tokendetr.config import target_name
for name in ("dino_r50_4scale_12ep", "dynamic_dino_shapes"):
    config = zoo.get_config(name)
    print(target_name(config.model.get("wrapped_target", config.model["_target_"])))
print(config.train.init_checkpoint)
"""
UPSTREAM_CONFIG = """
from detectron2.config import LazyCall as L
from projects.dino.modeling import DINO
from projects.focus_detr.configs.models.focus_sparsifier import sparsifier

model = L(DINO)(device="cpu")
train = dict(max_iter=10)
"""


def fake_clone(folder: Path) -> Path:
    """Write the ``projects`` of a clone of detrex: namespace packages, unused classes."""
    for name in ("dino", "common", "dynamic_detr"):
        modeling = folder / "projects" / name / "modeling"
        modeling.mkdir(parents=True)
        (modeling / "__init__.py").write_text("class DINO:\n    pass\n")
    models = folder / "projects" / "dino" / "configs" / "models"
    models.mkdir(parents=True)
    (models / "dino_r50.py").write_text("raise RuntimeError('a foreign config was read')\n")
    shutil.copy(models / "dino_r50.py", folder / "projects" / "common" / "coco.py")
    return folder


def run(code: str, *, cwd: Path, first: Path | None = None, last: Path | None = None):
    places = [first, ROOT, ROOT / "standalone", last]
    path = os.pathsep.join(str(place) for place in places if place is not None)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},  # detrex's own
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize("place", ["first", "last", "cwd"])
def test_our_configs_build_our_classes_beside_a_foreign_projects(tmp_path, place):
    clone = fake_clone(tmp_path / "detrex")
    places = {"cwd": tmp_path, place: clone}
    *targets, checkpoint = run(CONFIGS, **places).stdout.split()
    assert targets == ["tokendetr.models.dino.dino.DINO"] * 2
    dense = ROOT / "projects" / "dino" / "checkpoints" / "dino_shapes.safetensors"
    assert Path(checkpoint) == dense and dense.is_file()


def test_an_upstream_config_says_once_whose_classes_it_builds(tmp_path, caplog):
    clone = fake_clone(tmp_path / "detrex")
    config = tmp_path / "config.py"
    config.write_text(UPSTREAM_CONFIG)
    code = "from tokendetr import load_config\nload_config('config.py'), load_config('config.py')"
    file = clone / "projects" / "dino" / "modeling" / "__init__.py"
    assert run(code, cwd=tmp_path, first=clone).stderr.splitlines() == [
        f"this config builds projects.dino.modeling.DINO of {file}, not of tokendetr"
    ]
    assert target_name(load_config(str(config)).model["_target_"]).startswith("tokendetr.models")
    assert not caplog.records


def test_upstreams_import_path_leads_to_a_real_one_wherever_it_comes_on_the_path(tmp_path):
    """An installed package finds its own projects last, level by level."""
    clone = fake_clone(tmp_path / "detrex")
    environment = Environment(tmp_path / "environment")
    package = environment.packages / "tokendetr"
    package.mkdir()
    shutil.copy(ROOT / "tokendetr" / "_projects.py", package)
    (package / "__init__.py").touch()
    for name in ("tokendetr.pth", "tokendetr_startup.py"):
        shutil.copy(ROOT / name, environment.packages)
    for name in ("dino", "focus_detr"):
        ours = package / "projects" / name / "modeling"
        ours.mkdir(parents=True)
        (ours / "__init__.py").write_text("OURS = True\n")
    code = """
import importlib
for name in ("dino", "focus_detr", "common"):
    try:
        module = importlib.import_module(f"projects.{name}.modeling")
        print("ours" if hasattr(module, "OURS") else "theirs")
    except ModuleNotFoundError:
        print("none")
"""
    assert environment.run(code, cwd=tmp_path).split() == ["ours", "ours", "none"]
    # A folder of that name that has nothing to do with us hides nothing.
    (tmp_path / "work" / "projects" / "mine").mkdir(parents=True)
    assert environment.run(code, cwd=tmp_path / "work").split() == ["ours", "ours", "none"]
    theirs = ["theirs", "ours", "theirs"]
    assert environment.run(code, cwd=tmp_path, path=str(clone)).split() == theirs
    assert environment.run(code, cwd=clone).split() == theirs
    (environment.packages / "easy-install.pth").write_text(f"{clone}\n")
    assert environment.run(code, cwd=tmp_path).split() == theirs
    (environment.packages / "easy-install.pth").rename(environment.packages / "zz.pth")
    assert environment.run(code, cwd=tmp_path).split() == theirs


def test_an_interpreter_that_asks_for_no_project_imports_none_of_the_package(tmp_path):
    environment = Environment(tmp_path / "environment")
    for name in ("tokendetr.pth", "tokendetr_startup.py"):
        shutil.copy(ROOT / name, environment.packages)
    bare = "import sys; print(*sorted(sys.modules))"
    started = set(environment.run(bare, cwd=tmp_path).split())
    (environment.packages / "tokendetr.pth").unlink()
    assert started - set(environment.run(bare, cwd=tmp_path).split()) == {"tokendetr_startup"}


def test_no_config_imports_through_the_package_projects():
    found = [
        path.relative_to(ROOT)
        for folder in ("projects", "configs")
        for path in (ROOT / folder).rglob("*.py")
        if "from projects" in path.read_text() or "import projects" in path.read_text()
    ]
    assert not found
