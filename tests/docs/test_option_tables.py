"""The defaults in the methods' tables of options are those of the code."""

import ast
import inspect
import re

import pytest

from dynamic_detr import DynamicSparsifier
from focus_detr import FocusSparsifier
from sparse_detr import SparseSparsifier
from spt_backbone import SPT
from tests.source_tree import ROOT
from token_transforming import transform

TAKES_THEM = {
    "dynamic_detr": DynamicSparsifier,
    "focus_detr": FocusSparsifier,
    "sparse_detr": SparseSparsifier,
    "spt_backbone": SPT,
    "token_transforming": transform,
}


def stated(page: str) -> list[tuple[str, object, bool]]:
    """Return (argument, value, True for a default) of every ``name=value`` in the last table."""
    table = page.split("\n## Options\n")[1]
    found = []
    for row in re.findall(r"^\| (?!question|---)(.*) \|$", table, re.MULTILINE):
        for column, cell in enumerate(row.split(" | ")):
            for name, value in re.findall(r"`(\w+)=([^`]+)`", cell):
                try:
                    found.append((name, ast.literal_eval(value), column == 1))
                except (SyntaxError, ValueError):
                    found.append((name, None, False))
    return found


@pytest.mark.parametrize("method", TAKES_THEM)
def test_defaults_and_arguments_are_those_of_the_code(method):
    arguments = inspect.signature(TAKES_THEM[method]).parameters
    rows = stated((ROOT / f"docs/methods/{method}.md").read_text())
    assert len(rows) >= 3
    for name, value, is_default in rows:
        assert name in arguments
        if is_default:
            assert arguments[name].default == value
