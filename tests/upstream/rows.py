"""Rows that are compared one by one beside detrex, in a result file that is continued.

Also the frame of the programs that write it and show it as a table.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.upstream.__main__ import state_of
from tests.upstream.flows.on_a_cpu import stay_on_the_cpu
from tests.upstream.flows.programs import detrexs_projects
from tokendetr.analysis.tables import Table

__all__ = ["Rows", "parser_of", "rows_of"]


class Rows:
    """A JSON file with a row for each name, written after every row.

    Args:
        file: continued if it exists.
        made: the command and the versions, kept with the rows.
    """

    def __init__(self, file: Path, made: dict[str, str]) -> None:
        self.file = file
        self.made = made
        self.content: dict[str, Any] = {"rows": {}}
        if file.is_file():
            self.content = json.loads(file.read_text())

    def __contains__(self, name: str) -> bool:
        return name in self.content["rows"]

    def keep(self, name: str, row: dict[str, Any]) -> None:
        """Add or replace a row, print it and write the file."""
        self.content["rows"][name] = row
        self.content |= {**self.made, "date": datetime.date.today().isoformat()}
        print(name, json.dumps(row), flush=True)
        self.file.write_text(json.dumps(self.content, indent=1) + "\n")


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that all of these programs have."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--detectron2", type=Path, help="its source checkout, for its commit")
    parser.add_argument("--detrex", type=Path, default=Path(), help="its source checkout")
    parser.add_argument("--output", type=Path, help="JSON file of the rows, continued if it exists")
    parser.add_argument("--table", type=Path, help="print the table of such a file")
    return parser


def rows_of(
    parser: argparse.ArgumentParser, module: str, table: Callable[[dict[str, Any]], Table]
) -> tuple[argparse.Namespace, Rows]:
    """Read the command line and make ``projects`` lead to detrex's, on a CPU.

    Args:
        parser: of :func:`parser_of`, with further arguments.
        module: the program's name, for its command.
        table: makes the table of a result file.

    Raises:
        SystemExit: ``--table`` was asked for and is printed, or arguments are missing.
    """
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())).markdown())
        sys.exit()
    if args.output is None:
        parser.error("say --output or --table")
    stay_on_the_cpu()
    os.environ["UPSTREAM_DETREX"] = str(args.detrex.resolve())
    sys.path.insert(0, str(detrexs_projects(Path(tempfile.mkdtemp()))))
    detectron2 = f"detectron2 {state_of(args.detectron2)}, " if args.detectron2 else ""
    versions = f"{detectron2}detrex {state_of(args.detrex)}, torch {torch.__version__}"
    made = {
        "command": f"`python -m {module}`",
        "versions": f"{versions}, CPU ({platform.machine()})",
    }
    return args, Rows(args.output, made)
