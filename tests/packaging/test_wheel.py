"""What the wheel of ``tokendetr`` holds, and that it works from an empty folder."""

import shutil
import subprocess
import zipfile

import pytest
from environments import ROOT, SCRATCH_NAMES, build

METHODS = {"dynamic_detr", "focus_detr", "sparse_detr", "spt_backbone", "token_transforming"}


def tracked(folder: str) -> set[str]:
    """Files of a folder that git tracks, so that nothing made by chance counts."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel without kernels, built from a copy in a folder with a space in its name."""
    checkout = tmp_path_factory.mktemp("a checkout") / "tokendetr"
    shutil.copytree(
        ROOT, checkout, ignore=shutil.ignore_patterns(*SCRATCH_NAMES, "tests", "docs", "output")
    )
    return build(checkout, checkout / "dist", TOKENDETR_NO_EXTENSION="1")


def test_the_wheel_holds_library_methods_configs_and_weights(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names}
    assert {name for name in tops if not name.endswith(".dist-info")} == {
        "tokendetr",
        "tokendetr.pth",
        *METHODS,
    }
    library = {name for folder in ("tokendetr", *METHODS) for name in tracked(folder)}
    assert library <= names
    projects = {f"tokendetr/{name}" for name in tracked("projects")}
    assert {name for name in names if name.startswith("tokendetr/projects/")} == projects
    assert "tokendetr/projects/dino/checkpoints/dino_shapes.safetensors" in names
    assert {"tokendetr/py.typed", "tokendetr/__init__.pyi"} <= names
