"""Result tables, printed as markdown or spliced into a page between markers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokendetr.io.atomic import write_atomically

__all__ = ["Cell", "Table", "splice"]

Cell = str | float | int | None
"""Contents of a cell: text and integers are printed as they are, floats with one decimal (give text
for another number of decimals), None as not measured."""

_MISSING = "–"


@dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
        name: its name in a page's markers: letters, digits, ``.``, ``_`` and ``-``.
        title: a sentence above the table; may be empty.
        columns: headings of the columns.
        rows: one cell per column each.
        notes: sentences below the table, one list item each.

    Raises:
        ValueError: the name has other characters, there are no columns, or a row does not have one
            cell per column.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(
                f"table name {self.name!r}: use letters, digits, '.', '_' and '-' alone"
            )
        if not self.columns:
            raise ValueError(f"table '{self.name}' has no columns")
        for number, row in enumerate(self.rows, start=1):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table '{self.name}', row {number} ({', '.join(map(str, row))}): "
                    f"{len(row)} cells for {len(self.columns)} columns"
                )

    def markdown(self) -> str:
        """Return the title, the table and its notes; columns of numbers are right-aligned.

        A table without rows is its title and notes.
        """
        aligned = ["---:" if self._is_numeric(index) else "---" for index in range(self._width)]
        table = [
            _line([_text(column) for column in self.columns]),
            _line(aligned),
            *(_line([_text(cell) for cell in row]) for row in self.rows),
        ]
        shown = "\n".join(table) if self.rows else ""
        blocks = [self.title.strip(), shown, "\n".join(f"* {n}" for n in self.notes)]
        return "\n\n".join(block for block in blocks if block) + "\n"

    @property
    def _width(self) -> int:
        return len(self.columns)

    def _is_numeric(self, index: int) -> bool:
        cells = [row[index] for row in self.rows if row[index] is not None]
        return bool(cells) and all(_is_number(cell) for cell in cells)


def splice(path: str | Path, table: Table) -> bool:
    """Replace the text between a table's markers in a file, atomically.

    The markers are the lines ``<!-- table: NAME -->`` and ``<!-- end of table: NAME -->``; they
    stay.

    Args:
        path: a markdown file.
        table: the table, whose name the markers have.

    Returns:
        Whether the file changed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not have exactly one pair of this table's markers.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- table: {table.name} -->", f"<!-- end of table: {table.name} -->"
    pattern = re.compile(
        rf"^{re.escape(begin)}[ \t]*$.*?^{re.escape(end)}[ \t]*$", re.DOTALL | re.MULTILINE
    )
    counts = [len(re.findall(rf"^{re.escape(m)}[ \t]*$", text, re.MULTILINE)) for m in (begin, end)]
    found = pattern.search(text)
    if counts != [1, 1] or found is None:
        raise ValueError(
            f"{path} needs exactly one line '{begin}' and, after it, one line '{end}'; "
            f"it has {counts[0]} and {counts[1]}"
        )
    content = f"{begin}\n{table.markdown()}{end}"
    changed = text[: found.start()] + content + text[found.end() :]
    if changed != text:
        write_atomically(str(path), changed.encode())
    return changed != text


def _is_number(cell: Cell) -> bool:
    if isinstance(cell, str):
        return re.fullmatch(r"[+−-]?[\d.,]*\d( ?%)?", cell) is not None
    return True


def _text(cell: Cell) -> str:
    if cell is None:
        return _MISSING
    if isinstance(cell, float):
        return f"{cell:.1f}"
    return str(cell).replace("|", r"\|").replace("\n", " ")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
