"""The rules of docs/conventions.md about names and sizes."""

import ast
import re

import pytest

from tests.source_tree import METHODS, ROOT

FOLDERS = ("tokendetr", *METHODS, "projects", "standalone", "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TENSOR = re.compile(r"[a-z][a-z0-9_]*_([A-Z][A-Z0-9]*)")
LEGEND = set(
    re.findall(r"^\| ([A-Z]) \| ", (ROOT / "docs/conventions.md").read_text(), re.MULTILINE)
)


def defined(docstring: str) -> set[str]:
    """Return the letters that a docstring's paragraph ``Shapes: B image, N token.`` explains."""
    paragraphs = re.findall(r"^Shapes: (.*?)(?:\n\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    return set(
        re.findall(r"\b([A-Z])\b(?:,| and)? (?=[a-z=(A-Z])", " ".join(" ".join(paragraphs).split()))
    )


def used(tree: ast.AST) -> dict[str, str]:
    """Return the letters in the names of tensors, each with a name that has it."""
    names = [
        node.id if isinstance(node, ast.Name) else node.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.arg)
    ]
    matches = [match for name in names if (match := TENSOR.fullmatch(name))]
    return {letter: match[0] for match in matches for letter in match[1] if letter.isalpha()}


def unexplained(source: str) -> dict[str, str]:
    tree = ast.parse(source)
    letters = used(tree)
    known = LEGEND | defined(ast.get_docstring(tree) or "")
    return {letter: name for letter, name in sorted(letters.items()) if letter not in known}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_letter_of_a_tensor_s_name_is_in_the_legend_or_explained(folder):
    files = [path for path in FILES if path.relative_to(ROOT).parts[0] == folder]
    found = {str(path.relative_to(ROOT)): unexplained(path.read_text()) for path in files}
    assert {path: letters for path, letters in found.items() if letters} == {}


def test_a_letter_that_nothing_explains_is_found():
    assert set("BNKCLHWQMPV") <= LEGEND
    source = '"""A module.\n\nShapes: B image, E edge.\n"""\nmass_BE = 1\n'
    assert unexplained(source) == {}
    assert unexplained(f"{source}edges_BF, boxes_N4, TOKEN_B, map_HW = 1, 2, 3, 4\n") == {
        "F": "edges_BF"
    }


MOST_LINES, MOST_LINES_OF_A_FUNCTION = 350, 60
EVERYTHING = sorted(
    path
    for folder in (*FOLDERS, "tests", "csrc", "tools")
    for path in (ROOT / folder).rglob("*.py")
)


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its docstring."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function, clean=False) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_long_files_and_functions_say_why():
    silent = []
    for path in EVERYTHING:
        text = path.read_text()
        name = str(path.relative_to(ROOT))
        if len(text.splitlines()) > MOST_LINES and f"\n# Over {MOST_LINES} lines: " not in text:
            silent.append(name)
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            above = text.splitlines()[node.lineno - 2]
            reason = f"# Over {MOST_LINES_OF_A_FUNCTION} lines: "
            if code_lines(node) > MOST_LINES_OF_A_FUNCTION and reason not in above:
                silent.append(f"{name}: {node.name}")
    assert not silent, "split them, or say why in one line at the top"


def test_contributing_lists_the_modules_with_slow_tests():
    modules = {
        str(path.relative_to(ROOT / "tests"))
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"mark[.]slow\b", path.read_text())
    }
    listed = re.findall(r"^\| `(\S+\.py)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(modules)
