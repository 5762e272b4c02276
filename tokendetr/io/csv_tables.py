"""Tables as CSV files, which people open in spreadsheets."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

__all__ = ["csv_table"]

_STARTS_OF_FORMULAS = ("=", "+", "-", "@", "\t")
_NUMBERS = re.compile(r"[-+][\d.]+( to [-+][\d.]+)?")


def csv_table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> bytes:
    """Return a table as a CSV file in UTF-8, whose texts no spreadsheet takes for formulas.

    Texts come from files of others: names of classes, images and experiments. One that a
    spreadsheet would compute, as ``=HYPERLINK(...)``, gets an apostrophe in front, the sign of a
    text there, and line breaks become spaces. Numbers and intervals ("-0.3 to +0.1") stay.

    Args:
        columns: names of the columns, the first line.
        rows: cells of each further line.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(map(_as_text, row) for row in (columns, *rows))
    return text.getvalue().encode(errors="replace")


def _as_text(cell: object) -> object:
    if not isinstance(cell, str) or _NUMBERS.fullmatch(cell):
        return cell
    line = " ".join(cell.splitlines())
    return f"'{line}" if line.startswith(_STARTS_OF_FORMULAS) else line
