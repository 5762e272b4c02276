"""``import detectron2`` and ``import detrex`` find the stand-ins only if no real package exists."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.environments import SCRATCH, Environment, build, fake_project
from tests.source_tree import ROOT

BOTH = ("detectron2", "detrex")
WHICH = """
import importlib
for name in {order!r}:
    module = importlib.import_module(name)
    print(name, "real" if hasattr(module, "REAL") else "stand-in", end=" ")
"""


@pytest.fixture(scope="module")
def standalone(tmp_path_factory):
    """A copy of the distribution in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("a checkout") / "standalone"
    return Path(shutil.copytree(ROOT / "standalone", folder, ignore=SCRATCH))


@pytest.fixture(scope="module")
def wheels(standalone, tmp_path_factory):
    output = tmp_path_factory.mktemp("wheels")
    return {kind: build(standalone, output / kind, kind) for kind in ("wheel", "editable")}


@pytest.fixture(params=["wheel", "editable"])
def environment(request, wheels, tmp_path):
    made = Environment(tmp_path / "environment")
    made.lay(wheels[request.param])
    return made


@pytest.fixture
def elsewhere(tmp_path):
    folder = tmp_path / "some folder"
    folder.mkdir()
    return folder


def which(environment, cwd, path="", order=BOTH):
    printed = environment.run(WHICH.format(order=order), cwd=cwd, path=path).split()
    return dict(zip(printed[::2], printed[1::2], strict=True))


@pytest.mark.parametrize("order", [BOTH, BOTH[::-1]])
def test_they_are_imported_in_any_order(environment, elsewhere, order):
    assert which(environment, elsewhere, order=order) == dict.fromkeys(BOTH, "stand-in")


def in_wheel(environment, project):
    for package in project.glob("*/__init__.py"):
        shutil.copytree(package.parent, environment.packages / package.parent.name)


def in_legacy_editable(environment, project):
    (environment.packages / "easy-install.pth").write_text(f"{project}\n")


def in_editable(environment, project):
    environment.lay(build(project, project / "dist", "editable"))


def in_later_editable(environment, project):
    """Install a package in editable mode, with a finder registered after the stand-ins' own."""
    in_editable(environment, project)
    (pth,) = environment.packages.glob("__editable__.detectron2*.pth")
    pth.rename(pth.with_name("zz_detectron2.pth"))


@pytest.mark.parametrize("packages", [BOTH, BOTH[:1]], ids=["both", "detectron2 alone"])
@pytest.mark.parametrize(
    "install", [in_wheel, in_legacy_editable, in_editable, in_later_editable, None]
)
@pytest.mark.parametrize("first", ["real first", "stand-ins first"])
def test_a_real_one_wins(wheels, tmp_path, elsewhere, install, packages, first):
    project = fake_project(tmp_path / "a clone", packages)
    environment = Environment(tmp_path / "environment")
    path = "" if install is not None else str(project)
    steps = [lambda: environment.lay(wheels["wheel"])]
    if install is not None:
        steps.insert(first == "stand-ins first", lambda: install(environment, project))
    for step in steps:
        step()
    expected = {name: "real" if name in packages else "stand-in" for name in BOTH}
    for order in (BOTH, BOTH[::-1]):
        assert which(environment, elsewhere, path, order) == expected


def test_a_clones_folder_is_no_package_but_the_package_in_it_is(environment, tmp_path):
    parent = tmp_path / "sources"
    clone = fake_project(parent / "detectron2", ("detectron2",))
    # From the folder that holds the clone, `detectron2` is a namespace package with nothing in it.
    assert which(environment, parent) == dict.fromkeys(BOTH, "stand-in")
    assert which(environment, clone) == {"detectron2": "real", "detrex": "stand-in"}
    # Once installed, the clone is found from both folders, although the empty one comes first.
    in_editable(environment, clone)
    for folder in (parent, clone):
        assert which(environment, folder) == {"detectron2": "real", "detrex": "stand-in"}


def test_nothing_of_a_real_one_is_overwritten(wheels, tmp_path):
    environment = Environment(tmp_path / "environment")
    before = {path.name for path in environment.packages.iterdir()}
    environment.lay(wheels["wheel"])
    added = {path.name for path in environment.packages.iterdir()} - before
    assert sorted(name.partition("-")[0] for name in added) == [
        "tokendetr_standalone",
        "tokendetr_standalone",
        "tokendetr_standalone.pth",
    ]


def test_two_copies_do_not_ask_each_other_in_circles(environment, elsewhere):
    code = """
        import importlib.util, sys, tokendetr_standalone.finder as one
        spec = importlib.util.spec_from_file_location("another", one.__file__)
        another = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(another)
        another.install(), one.install()
        print(sum("StandIn" in str(finder) for finder in sys.meta_path))
        sys.meta_path.insert(0, another.StandInFinder)
        import detectron2
        find = importlib.util.find_spec
        print(find("detectron2.config").name, find("absent"))
    """
    printed = environment.run("\n".join(map(str.strip, code.splitlines())), cwd=elsewhere)
    assert printed.split() == ["1", "detectron2.config", "None"]


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_uninstalling_leaves_nothing(wheels, tmp_path, elsewhere, kind):
    environment = Environment(tmp_path / "environment")

    def pip(*arguments):
        command = [sys.executable, "-m", "pip", "--python", environment.python, *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=elsewhere)

    before = sorted(environment.packages.rglob("*"))
    pip("install", "--no-deps", "--no-index", "--no-build-isolation", wheels[kind])
    assert which(environment, elsewhere) == dict.fromkeys(BOTH, "stand-in")
    pip("uninstall", "--yes", "tokendetr-standalone")
    assert sorted(environment.packages.rglob("*")) == before
    code = "import importlib.util as u; print(u.find_spec('detectron2'), u.find_spec('detrex'))"
    assert environment.run(code, cwd=elsewhere) == "None None"
