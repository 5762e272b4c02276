"""Figures of the source tree: their definition, and the bounds that the tree keeps."""

import ast

import pytest

from tokendetr.cli.code_figures import (
    ROOT,
    circles,
    measure,
    path_edits,
    percentile,
    repeated_blocks,
    state_of_a_pass,
)

TEXT = """
from contextvars import ContextVar
import sys, threading
A = ContextVar("a")
B = threading.local()
class C(threading.local):
    pass
sys.path.insert(0, ".")
class Layer:
    def forward(self, x):
        self.seen = x
        self.calls += 1
        y = x
"""


def test_state_and_path_edits_are_counted():
    tree = ast.parse(TEXT)
    assert state_of_a_pass([tree]) == {
        "context_variables": 1,
        "thread_locals": 2,
        "global_statements": 0,
        "attributes_set_in_forward": 2,
    }
    assert path_edits([tree]) == 1


def test_circles_are_found_through_others():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert not circles({"a": {"b"}, "b": {"c"}, "c": set()})


def test_percentiles():
    assert percentile(range(1, 101), 0.95) == 96
    assert percentile([], 0.5) == 0


def test_repeated_blocks_are_counted_once_per_pair(tmp_path):
    body = "\n".join(f"value_{i} = compute({i})" for i in range(8))
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(body)
    (tmp_path / "three.py").write_text("\n".join(f"other_{i} = compute({i})" for i in range(8)))
    assert len(repeated_blocks(sorted(tmp_path.glob("*.py")))) == 1


def test_lists_of_imports_are_no_blocks(tmp_path):
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text("from a import (\n  b,\n  c,\n  d,\n  e,\n  f,\n  g,\n)\n")
    assert repeated_blocks(sorted(tmp_path.glob("*.py"))) == []


@pytest.mark.checkout
@pytest.mark.timeout(120)
def test_the_tree_keeps_its_bounds():
    figures = measure(ROOT)
    assert figures["circles"] == []
    assert figures["context_variables"] == 1
    # use_reference(), and the pass of compiled code of Token Transforming
    assert figures["thread_locals"] == 2
    assert figures["global_statements"] == 0
    assert figures["attributes_set_in_forward"] == 0
    assert figures["sys_path_edits"] == 0
    assert len(figures["modules_at_the_root"]) <= 6
    assert figures["file_lines_max"] <= 500
    assert figures["function_lines_p95"] <= 45
    assert figures["repeated_blocks"] <= 15
