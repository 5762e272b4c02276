"""The contents of the wheel of ``tokendetr``, and the size of the repository."""

import zipfile

import pytest

from tests.packaging.environments import WITHOUT_KERNELS, build, copy_checkout, tracked_files
from tests.source_tree import METHODS, ROOT

MOST_BYTES = 40 * 2**20


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Return the names in a wheel without kernels, built in a folder with a space in its name."""
    checkout = copy_checkout(tmp_path_factory.mktemp("a checkout") / "tokendetr")
    wheel = build(checkout, checkout / "dist", **WITHOUT_KERNELS)
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_library_methods_configs_and_weights(names):
    tops = {name.partition("/")[0] for name in names}
    assert {name for name in tops if not name.endswith(".dist-info")} == {
        "tokendetr",
        "tokendetr.pth",
        "tokendetr_startup.py",
        *METHODS,
    }
    assert set(tracked_files("tokendetr", *METHODS)) <= names
    projects = {f"tokendetr/{name}" for name in tracked_files("projects")}
    assert {name for name in names if name.startswith("tokendetr/projects/")} == projects
    assert "tokendetr/projects/dino/checkpoints/dino_shapes.safetensors" in names
    assert {"tokendetr/py.typed", "tokendetr/__init__.pyi"} <= names


def test_the_repository_stays_small():
    sizes = {name: (ROOT / name).stat().st_size for name in tracked_files()}
    heaviest = sorted(sizes, key=sizes.__getitem__)[-5:]
    assert sum(sizes.values()) < MOST_BYTES, f"heaviest: {heaviest}"
