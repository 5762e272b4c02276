"""Nothing exists in the stand-ins that detectron2 and detrex do not have."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.upstream

STANDALONE = Path(__file__).resolve().parents[2] / "standalone"
MODULES = {
    ".".join(path.relative_to(STANDALONE).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("detectron2", "detrex")
    for path in sorted((STANDALONE / package).rglob("*.py"))
}
PUBLIC = [name for name in MODULES if not any(part.startswith("_") for part in name.split("."))]


def public_names(path: Path) -> Iterator[str]:
    """What a module offers: ``__all__`` where it has one, else its classes and functions."""
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            if isinstance(node.value, ast.List) and not any(
                isinstance(item, ast.Starred) for item in node.value.elts
            ):
                yield from ast.literal_eval(node.value)
            return
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name


@pytest.mark.parametrize("name", PUBLIC)
def test_a_module_of_the_stand_ins_and_its_names_exist(name):
    module = importlib.import_module(name)
    missing = [found for found in public_names(MODULES[name]) if not hasattr(module, found)]
    submodules = {info.name for info in pkgutil.iter_modules(getattr(module, "__path__", []))}
    assert not [found for found in missing if found not in submodules], f"{name} lacks {missing}"
