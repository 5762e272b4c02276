"""Print a project's result tables, or write them into its pages.

Examples:
    tokendetr table dynamic_detr
    tokendetr table dynamic_detr --write    # between the markers in its pages
    tokendetr table dynamic_detr --only gflops
    tokendetr table recorded --write        # every result file of docs/records into its page

A project's tables are defined by ``tables()`` in ``projects/<method>/table.py``, which yields
``tokendetr.analysis.tables.Table``. A result file holds figures that were measured once, with the
command, machine and date.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokendetr.analysis.project_pages import splice_project
from tokendetr.analysis.recorded_tables import read_recorded
from tokendetr.analysis.tables import Table, splice
from tokendetr.cli.arguments import described_parser
from tokendetr.cli.program import program
from tokendetr.config.files import PROJECTS_DIR

RECORDED = "recorded"
"""Instead of a project: the result files of ``docs/records``."""


def methods(projects: Path) -> list[str]:
    """Return the names of the projects that have tables."""
    return sorted(path.parent.name for path in projects.glob("*/table.py"))


def tables_of(method: str, projects: Path) -> Iterable[Table]:
    """Return an iterable of a project's tables, each computed on demand.

    Raises:
        ValueError: the project has no tables; the message names those that have.
    """
    known = methods(projects)
    if method not in known:
        near = difflib.get_close_matches(method, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(
            f"there is no projects/{method}/table.py{hint} Projects with tables: {', '.join(known)}"
        )
    # From its file: another package named ``projects`` may come first on the path.
    name = f"tokendetr_table_of_{method}"
    spec = importlib.util.spec_from_file_location(name, projects / method / "table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    found: Iterable[Table] = module.tables()
    return found


def show_recorded(projects: Path, write: bool) -> None:
    """Print the tables of all result files, and on request write them into their pages.

    Raises:
        FileNotFoundError: there are no such files, as beside an installed package.
    """
    root = projects.parent
    files = sorted((root / "docs" / "records").glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"{root / 'docs' / 'records'} has no result files: they come with a checkout, and are "
            "not installed"
        )
    for file in files:
        recorded = read_recorded(file)
        for table in recorded.shown():
            print(table.markdown(), flush=True)
            if write:
                report(table, root / recorded.page, splice(root / recorded.page, table), root)


def show_project(args: argparse.Namespace, projects: Path) -> None:
    """Make a project's tables, print them, and on request write them into its pages."""
    seen = []
    for table in tables_of(args.method, projects):
        seen.append(table.name)
        if args.only in (None, table.name):
            print(table.markdown(), flush=True)
            if args.write:
                report(table, *splice_project(args.method, projects, table), projects.parent)
    if args.only is not None and args.only not in seen:
        raise ValueError(f"{args.method} has no table '{args.only}', only {', '.join(seen)}")


def report(table: Table, page: Path, changed: bool, root: Path) -> None:
    """Print what became of a page, apart from the table itself."""
    state = "written to" if changed else "unchanged in"
    print(f"{table.name}: {state} {page.relative_to(root)}", file=sys.stderr)


@program(ValueError)
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = described_parser(__doc__)
    parser.add_argument(
        "method", help=f"name of a folder under projects/ that has a table.py, or {RECORDED!r}"
    )
    parser.add_argument("--only", metavar="NAME", help="this table alone")
    parser.add_argument("--write", action="store_true", help="put them into the project's pages")
    args = parser.parse_args(arguments)
    if args.method == RECORDED:
        show_recorded(PROJECTS_DIR, args.write)
    else:
        show_project(args, PROJECTS_DIR)


if __name__ == "__main__":
    main()
