"""The ladder of docs/layout.md, checked against all imports, also those inside functions."""

import ast
from pathlib import Path

import pytest

from tests.source_tree import METHODS, ROOT, detectors, python_files

OURS = ("tokendetr", "projects", "tools", "benchmarks", *METHODS)


def imported_modules(path: Path) -> set[str]:
    """Return dotted names of all absolute imports in a file; relative ones are left out."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def offending(files: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in sorted(imported_modules(path))
        if any(name == prefix or name.startswith(prefix + ".") for prefix in forbidden)
    ]


LADDER = (
    ("errors",),
    ("io", "compat"),
    ("ops",),
    ("tokens",),
    ("layers",),
    ("encoder",),
    ("detector",),
    ("models",),
    ("checkpoint",),
    ("config",),
    ("data",),
    ("evaluation",),
    ("train",),
    ("analysis",),
    ("visualization",),
    ("predict",),
    ("report",),
    ("deploy",),
    ("sparsification",),
    ("integrations",),
    ("cli",),
)
"""Packages of the library, top rung first; a package imports only those of rungs above its own."""


def test_every_package_of_the_library_stands_on_the_ladder():
    folders = {p.name for p in (ROOT / "tokendetr").iterdir() if list(p.glob("*.py"))}
    modules = {p.stem for p in (ROOT / "tokendetr").glob("*.py") if not p.stem.startswith("_")}
    assert folders | modules == {package for rung in LADDER for package in rung}


@pytest.mark.parametrize("rung", range(len(LADDER)))
def test_packages_import_only_packages_above_them(rung):
    for package in LADDER[rung]:
        below = [name for names in LADDER[rung:] for name in names if name != package]
        files = python_files(f"tokendetr/{package}") or [ROOT / f"tokendetr/{package}.py"]
        assert not offending(files, tuple(f"tokendetr.{name}" for name in below))


def test_the_rules_look_at_real_files():
    assert len(python_files("tokendetr")) > 10
    assert "dino" in detectors()
    assert "torch" in imported_modules(ROOT / "tests" / "conftest.py")


def test_no_file_lists_the_methods():
    """``tokendetr._projects.methods`` finds them, so a new one has nowhere else to be added."""
    folders = ("tokendetr", "projects", "tests", "benchmarks", "tools", "docs", "csrc")
    files = [*python_files(*folders), *ROOT.glob("*.py"), *ROOT.glob("*.toml")]
    assert len(METHODS) > 5
    assert not [path for path in files if all(name in path.read_text() for name in METHODS)]


def test_standalone_imports_nothing_of_ours():
    assert not offending(python_files("standalone"), OURS)


def test_the_library_imports_no_method():
    # Command-line programs stand above the methods, beside tools/.
    files = [
        path for path in python_files("tokendetr") if "cli" not in path.relative_to(ROOT).parts
    ]
    assert not offending(files, ("projects", "tools", "benchmarks", *METHODS))


@pytest.mark.parametrize("method", METHODS)
def test_methods_import_neither_each_other_nor_a_detector(method):
    others = tuple(name for name in METHODS if name != method)
    assert not offending(python_files(method), ("projects", "tools", "benchmarks", *others))


def test_detectors_import_no_method_and_no_other_detector():
    for detector in detectors():
        files = python_files(f"tokendetr/models/{detector}")
        others = tuple(f"tokendetr.models.{name}" for name in detectors() if name != detector)
        assert not offending(files, (*METHODS, "tools", "benchmarks", *others)), detector


def test_the_compiled_extension_is_reached_through_ops_alone():
    outside = [path for path in python_files(*OURS) if "tokendetr/ops" not in path.as_posix()]
    assert not [path for path in outside if "libtokendetr_ops" in path.read_text()]
    assert not [path for path in outside if "torch.ops.tokendetr" in path.read_text()]


def test_optional_packages_are_never_imported_at_module_level():
    optional = {"torchvision", "timm", "transformers", "cv2", "wandb", "lvis", "hotcoco"}
    optional |= {"faster_coco_eval", "plotly", "playwright"}
    found = []
    for path in python_files("standalone", *OURS):
        for node in ast.parse(path.read_text()).body:
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            found += [
                f"{path.relative_to(ROOT)}: {n}" for n in names if n.split(".")[0] in optional
            ]
    assert not found


def test_no_test_module_imports_another():
    """What two test modules need is in a helper module beside them."""
    tests = python_files("tests")
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in tests]
    test_modules = tuple(name for name in modules if name.split(".")[-1].startswith("test_"))
    assert len(test_modules) > 100
    assert not offending(tests, test_modules)


def test_test_modules_have_names_of_their_own():
    """Without packages, pytest imports them by their names alone."""
    folders = [path.parent for path in python_files("tests") if path.name.startswith("test_")]
    names = [
        path.name
        for folder in set(folders)
        for path in folder.glob("test_*.py")
        if not (folder / "__init__.py").exists()
    ]
    assert len(names) == len(set(names))
