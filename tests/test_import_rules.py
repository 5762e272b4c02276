"""The layering of docs/layout.md, held against the real imports of every module (also those inside
functions)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("sparse_detr", "focus_detr", "dynamic_detr", "token_transforming", "spt_backbone")
OURS = ("tokendetr", "projects", "tools", "benchmarks", *METHODS)


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Dotted names of all absolute imports in a file; relative ones resolve to the file's own
    package."""
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


def detectors() -> list[str]:
    return sorted(path.parent.name for path in (ROOT / "projects").glob("*/modeling"))


def test_the_rules_look_at_real_files():
    assert len(python_files("tokendetr")) > 10
    assert "dino" in detectors()
    assert "torch" in imported_modules(ROOT / "tests" / "conftest.py")


def test_standalone_imports_nothing_of_ours():
    assert not offending(python_files("standalone"), OURS)


def test_tokendetr_imports_no_method_and_no_detector():
    assert not offending(python_files("tokendetr"), ("projects", "tools", "benchmarks", *METHODS))


@pytest.mark.parametrize("method", METHODS)
def test_methods_import_neither_each_other_nor_a_detector(method):
    others = tuple(name for name in METHODS if name != method)
    assert not offending(python_files(method), ("projects", "tools", "benchmarks", *others))


def test_detectors_import_no_method_and_no_other_detector():
    for detector in detectors():
        files = python_files(f"projects/{detector}/modeling")
        others = tuple(f"projects.{name}" for name in detectors() if name != detector)
        assert not offending(files, (*METHODS, "tools", "benchmarks", *others)), detector


def test_the_compiled_extension_is_reached_through_ops_alone():
    outside = [path for path in python_files(*OURS) if "tokendetr/ops" not in path.as_posix()]
    assert not offending(outside, ("tokendetr._C",))
    assert not [path for path in outside if "torch.ops.tokendetr" in path.read_text()]


def test_optional_packages_are_never_imported_at_module_level():
    optional = {"torchvision", "timm", "transformers", "cv2", "wandb", "lvis", "hotcoco"}
    optional |= {"faster_coco_eval"}
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
