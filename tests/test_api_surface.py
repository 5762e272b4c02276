"""The public interface equals ``api_surface.json``, so that every change of it is deliberate.

``python -m tests.test_api_surface --write`` records a changed one.
"""

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tokendetr
import tokendetr.config
from tests.source_tree import ROOT

RECORDED = Path(__file__).with_name("api_surface.json")
HEAVY = ("torch", "scipy", "numpy", "detectron2", "detrex", "omegaconf")
MOST_MODULES = {"tokendetr": 20, "tokendetr.config.files": 60}
"""Modules that an import may add to a bare interpreter's; these add 4 and 49."""


def parameters(value) -> list[str]:
    """Return names, kinds and defaults of parameters; annotations may become narrower."""
    shown = []
    for parameter in inspect.signature(value).parameters.values():
        bare = parameter.replace(annotation=inspect.Parameter.empty)
        mark = " (keyword)" if parameter.kind is inspect.Parameter.KEYWORD_ONLY else ""
        shown.append(f"{bare}{mark}")
    return shown


def describe(value) -> object:
    if inspect.ismodule(value):
        names = [name for name in value.__all__ if callable(getattr(value, name))]
        return {name: parameters(getattr(value, name)) for name in sorted(names)}
    if inspect.isclass(value):
        methods = {
            name: parameters(method)
            for name, method in inspect.getmembers(value, inspect.isfunction)
            if not name.startswith("_") and method.__module__.startswith("tokendetr")
        }
        if issubclass(value, BaseException):
            return {"bases": [base.__name__ for base in value.__bases__]}
        return {"init": parameters(value), **methods}
    return parameters(value) if callable(value) else type(value).__name__


def surface() -> dict[str, object]:
    return {name: describe(getattr(tokendetr, name)) for name in tokendetr.__all__}


def test_the_public_interface_is_the_recorded_one():
    assert surface() == json.loads(RECORDED.read_text())


@pytest.mark.parametrize("package", [tokendetr, tokendetr.config], ids=lambda it: it.__name__)
def test_type_checkers_see_the_same_names(package):
    stub = Path(package.__file__).with_suffix(".pyi").read_text()
    imported = re.findall(r"^from (\S+) import (\w+) as \2$", stub, re.M)
    declared = re.findall(r"^(\w+): str$", stub, re.M)
    assert {name for _, name in imported} | set(declared) == set(package.__all__)
    for home, name in imported:
        assert getattr(importlib.import_module(home), name) is getattr(package, name)


def test_dir_lists_the_public_names_and_others_are_refused():
    assert set(tokendetr.__all__) <= set(dir(tokendetr))
    assert not hasattr(tokendetr, "no_such_name")


@pytest.mark.parametrize("module", MOST_MODULES)
def test_importing_the_package_or_finding_a_config_loads_nothing_heavy(module):
    code = (
        f"import sys; before = set(sys.modules); import {module}\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],  # an installed interpreter has it loaded at its start
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    added = done.stdout.split()
    assert not {name.partition(".")[0] for name in added} & set(HEAVY)
    assert module in added
    assert len(added) <= MOST_MODULES[module], added


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        RECORDED.write_text(json.dumps(surface(), indent=1) + "\n")
