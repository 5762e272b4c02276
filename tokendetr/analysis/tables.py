"""Tables of results: one description, printed as markdown or put into a README between markers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokendetr.io.atomic import write_atomically

__all__ = ["Cell", "Table", "splice"]

Cell = str | float | int | None
"""What a cell may hold: text and whole numbers as they are, other numbers with one decimal (write a
text for another number of decimals), None for what was not measured."""

_MISSING = "–"


@dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
        name: what a README's markers call it: letters, digits, ``.``, ``_`` and ``-``.
        title: a sentence above it; may be empty.
        columns: their headings.
        rows: one cell per column each.
        notes: sentences below it, a list item each.

    Raises:
        ValueError: where the name has other characters, there are no columns, or a row has not one
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
        """Return the title, the table and its notes; columns of numbers are set to the right."""
        aligned = ["---:" if self._is_numeric(index) else "---" for index in range(self._width)]
        table = [
            _line([_text(column) for column in self.columns]),
            _line(aligned),
            *(_line([_text(cell) for cell in row]) for row in self.rows),
        ]
        blocks = [self.title.strip(), "\n".join(table), "\n".join(f"* {n}" for n in self.notes)]
        return "\n\n".join(block for block in blocks if block) + "\n"

    @property
    def _width(self) -> int:
        return len(self.columns)

    def _is_numeric(self, index: int) -> bool:
        cells = [row[index] for row in self.rows if row[index] is not None]
        return bool(cells) and all(_is_number(cell) for cell in cells)


def splice(path: str | Path, table: Table) -> bool:
    """Replace what a file holds between a table's markers, in one step or not at all.

    The markers stay: ``<!-- table: NAME -->`` and ``<!-- end of table: NAME -->``, alone on their
    lines.

    Args:
        path: of a markdown file.
        table: whose name the markers bear.

    Returns:
        Whether the file changed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has not exactly one pair of markers of this table.
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
