"""Measure the source tree: sizes, packages, global state, repeated blocks, cost of an import.

Examples:
    python tools/code_figures.py
    python tools/code_figures.py --json figures.json
"""

from __future__ import annotations

import ast
import json
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokendetr._projects import methods
from tokendetr.cli.arguments import described_parser
from tokendetr.cli.program import program
from tokendetr.config.files import PROJECTS_DIR

ROOT = PROJECTS_DIR.parent
"""Root of the source checkout, whose files are measured."""

LIBRARY = ("tokendetr", *methods())
BLOCK_LINES = 6
_BOILERPLATE = (
    ")",
    "]",
    "}",
    "@",
    '"""',
    "#",
    "raise ",
    "def __init__",
    "self.",
)


def sources(root: Path, folders: Iterable[str]) -> list[Path]:
    """Return the Python files below some folders of a source tree, sorted."""
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def percentile(values: Sequence[int], share: float) -> int:
    """Return the value that a share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def function_lengths(trees: Iterable[ast.Module]) -> list[int]:
    """Return the number of lines of every function, including signature and docstring."""
    return [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def _calls(tree: ast.Module, *names: str) -> int:
    """Count calls of functions by their last name, such as ``ContextVar``."""
    found = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            found += (name.id if isinstance(name, ast.Name) else name) in names
    return found


def _derives(tree: ast.Module, name: str) -> int:
    """Count classes with a base of a name, such as ``threading.local``."""
    return sum(
        isinstance(base, ast.Attribute) and base.attr == name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases
    )


def state_of_a_pass(trees: Sequence[ast.Module]) -> dict[str, int]:
    """Count context variables, thread-locals, ``global`` statements, attributes set in forward."""
    set_in_forward = sum(
        isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
        for tree in trees
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name == "forward"
        for node in ast.walk(function)
        if isinstance(node, ast.Assign | ast.AugAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    )
    return {
        "context_variables": sum(_calls(tree, "ContextVar") for tree in trees),
        "thread_locals": sum(_calls(tree, "local") + _derives(tree, "local") for tree in trees),
        "global_statements": sum(
            isinstance(n, ast.Global) for tree in trees for n in ast.walk(tree)
        ),
        "attributes_set_in_forward": set_in_forward,
    }


def path_edits(trees: Iterable[ast.Module]) -> int:
    """Count uses of ``sys.path``."""
    return sum(
        isinstance(node, ast.Attribute)
        and node.attr == "path"
        and isinstance(node.value, ast.Name)
        and node.value.id == "sys"
        for tree in trees
        for node in ast.walk(tree)
    )


def package_imports(root: Path) -> dict[str, set[str]]:
    """Return subpackage of the library -> subpackages that it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sources(root, ["tokendetr"]):
        parts = path.relative_to(root / "tokendetr").with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
            if module and module.startswith("tokendetr."):
                other = module.split(".")[1]
                if other != parts[0]:
                    found[parts[0]].add(other)
    return found


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of subpackages that import each other, directly or through others."""
    reached = {package: set(others) for package, others in imports.items()}
    for middle in list(reached):
        for others in reached.values():
            if middle in others:
                others |= reached[middle]
    groups = {
        tuple(sorted(other for other in reached if package in reached[other] and other in others))
        for package, others in reached.items()
        if package in others
    }
    return [list(group) for group in sorted(groups)]


def _blocks(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield all blocks of consecutive lines, without empty ones and those of imports."""
    text = path.read_text()
    imports = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    numbered = enumerate(text.splitlines(), start=1)
    lines = [line.strip() for number, line in numbered if line.strip() and number not in imports]
    for start in range(len(lines) - BLOCK_LINES + 1):
        block = tuple(lines[start : start + BLOCK_LINES])
        if sum(line.startswith(_BOILERPLATE) for line in block) <= BLOCK_LINES // 3:
            yield block


def repeated_blocks(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Return the pairs of files that share six consecutive lines that are not boilerplate."""
    places: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path in paths:
        for block in _blocks(path):
            places[block].add(str(path))
    pairs = Counter((a, b) for files in places.values() for a in files for b in files if a < b)
    return sorted(pairs)


def imported_modules(statement: str) -> int:
    """Return the number of modules that a statement loads in a new interpreter."""
    code = (
        f"import sys; before = set(sys.modules); {statement}; print(len(set(sys.modules) - before))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(out.stdout)


def measure(root: Path) -> dict[str, Any]:
    """Return all figures of a source tree."""
    files = sources(root, LIBRARY)
    trees = [ast.parse(path.read_text()) for path in files]
    lengths = [len(path.read_text().splitlines()) for path in files]
    functions = function_lengths(trees)
    everything = sources(root, (*LIBRARY, "tools", "benchmarks", "projects", "standalone"))
    library = root / "tokendetr"
    packages = sorted(path.name for path in library.iterdir() if list(path.glob("*.py")))
    return {
        "files": len(files),
        "lines": sum(lengths),
        "file_lines_median": int(statistics.median(lengths)),
        "file_lines_p90": percentile(lengths, 0.9),
        "file_lines_max": max(lengths),
        "function_lines_median": int(statistics.median(functions)),
        "function_lines_p95": percentile(functions, 0.95),
        "packages": packages,
        "modules_at_the_root": sorted(p.name for p in library.glob("*.py")),
        "circles": circles(package_imports(root)),
        **state_of_a_pass(trees),
        "sys_path_edits": path_edits(ast.parse(path.read_text()) for path in everything),
        "repeated_blocks": len(repeated_blocks(sources(root, (*LIBRARY, "tools", "benchmarks")))),
        "modules_loaded_by_import_tokendetr": imported_modules("import tokendetr"),
        "modules_loaded_by_import_tokendetr_config": imported_modules("import tokendetr.config"),
    }


@program()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    args = parser.parse_args(arguments)
    figures = measure(ROOT)
    for name, value in figures.items():
        print(f"{name:45} {value if not isinstance(value, list) else ', '.join(map(str, value))}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
