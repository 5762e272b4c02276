"""Result files: tables with the command, machine and date that they come from, and their page."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokendetr.analysis.tables import Table
from tokendetr.io.atomic import write_atomically

__all__ = ["RecordedTables", "read_recorded", "write_recorded"]

_KEYS = ("page", "date", "machine", "commands", "tables")
_TABLE_KEYS = ("name", "title", "columns", "rows", "notes")


@dataclass(frozen=True)
class RecordedTables:
    """The content of one result file.

    Attributes:
        page: markdown file that shows the tables between their markers, from the repository's root.
        date: of the measurement, year first.
        machine: processor, threads and library versions.
        commands: that made the figures.
        tables: without provenance; ``shown`` adds it.
    """

    page: str
    date: str
    machine: str
    commands: Sequence[str]
    tables: Sequence[Table]

    def shown(self) -> Iterator[Table]:
        """Yield the tables, each with its provenance as the last note."""
        commands = ", ".join(f"`{command}`" for command in self.commands)
        provenance = f"{commands}; {self.machine}; {self.date}."
        for table in self.tables:
            yield replace(table, notes=(*table.notes, provenance))


def write_recorded(file: Path, recorded: RecordedTables) -> None:
    """Write a result file in one step, as JSON."""
    content = {key: getattr(recorded, key) for key in _KEYS[:-1]}
    content["commands"] = list(recorded.commands)
    content["tables"] = [
        {key: getattr(table, key) for key in _TABLE_KEYS} for table in recorded.tables
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_atomically(str(file), (text + "\n").encode())


def read_recorded(file: Path) -> RecordedTables:
    """Read a result file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not JSON, or has missing or unknown keys; the message names both.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        tables = [_checked(table, _TABLE_KEYS) for table in _checked(content, _KEYS)["tables"]]
        return RecordedTables(**{**content, "tables": [Table(**table) for table in tables]})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a result file: {error}") from error


def _checked(content: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return the content, or name the keys that it lacks and those that it should not have."""
    if set(content) != set(keys):
        missing, unknown = sorted(set(keys) - set(content)), sorted(set(content) - set(keys))
        raise ValueError(f"missing keys {missing}, unknown keys {unknown}")
    return content
