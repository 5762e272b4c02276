"""Print a project's tables of results, or write them into its README.

Examples:
    tokendetr table dynamic_detr
    tokendetr table dynamic_detr --write    # between the markers in its README
    tokendetr table dynamic_detr --only gflops

``projects/<method>/table.py`` makes them: its ``tables()`` yields
``tokendetr.analysis.tables.Table``.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokendetr.analysis.tables import Table, splice
from tokendetr.cli.arguments import described_parser
from tokendetr.config.tree import PROJECTS_DIR


def methods(projects: Path) -> list[str]:
    """Names of the projects that have tables."""
    return sorted(path.parent.name for path in projects.glob("*/table.py"))


def tables_of(method: str, projects: Path) -> Iterable[Table]:
    """The tables of a project, each made when it is asked for.

    Raises:
        ValueError: the project has none; the message names those that have.
    """
    known = methods(projects)
    if method not in known:
        near = difflib.get_close_matches(method, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = described_parser(__doc__)
    parser.add_argument("method", help="name of a folder under projects/ that has a table.py")
    parser.add_argument("--only", metavar="NAME", help="this table alone")
    parser.add_argument("--write", action="store_true", help="put them into the project's README")
    args = parser.parse_args(arguments)
    projects = PROJECTS_DIR
    seen = []
    try:
        for table in tables_of(args.method, projects):
            seen.append(table.name)
            if args.only not in (None, table.name):
                continue
            print(table.markdown(), flush=True)
            if args.write:
                readme = projects / args.method / "README.md"
                state = "written to" if splice(readme, table) else "unchanged in"
                print(
                    f"{table.name}: {state} {readme.relative_to(projects.parent)}", file=sys.stderr
                )
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    if args.only is not None and args.only not in seen:
        sys.exit(f"error: {args.method} has no table '{args.only}', only {', '.join(seen)}")


if __name__ == "__main__":
    main()
