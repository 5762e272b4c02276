"""The public interface equals ``api_surface.json``, so that every change of it is deliberate.

``python -m tests.test_api_surface --write`` records a changed one.
"""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import tokendetr
from tests.source_tree import ROOT

RECORDED = Path(__file__).with_name("api_surface.json")
HEAVY = ("torch", "scipy", "numpy", "detectron2", "detrex", "omegaconf")
MOST_MODULES = 20
"""Modules that importing the package may add to a bare interpreter's; it adds 3."""


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


def test_type_checkers_see_the_same_names():
    stub = (ROOT / "tokendetr" / "__init__.pyi").read_text()
    assert set(re.findall(r"^(?:from .* import \w+ as )?(\w+)(?:: str)?$", stub, re.M)) == set(
        tokendetr.__all__
    )
    for module, name in re.findall(r"^from (\S+) import (\w+) as", stub, re.M):
        assert name in tokendetr._HOMES[module], (module, name)


def test_dir_lists_the_public_names_and_others_are_refused():
    assert set(tokendetr.__all__) <= set(dir(tokendetr))
    assert not hasattr(tokendetr, "no_such_name")


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys; before = set(sys.modules); import tokendetr\n"
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
    assert "tokendetr" in added
    assert len(added) <= MOST_MODULES, added


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        RECORDED.write_text(json.dumps(surface(), indent=1) + "\n")
