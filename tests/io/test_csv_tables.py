"""Text of other people's files is not a formula in a table, and comes back as it was otherwise."""

import csv
import io

from tokendetr.io.csv_tables import csv_table


def test_texts_that_a_spreadsheet_would_compute_are_marked_as_texts() -> None:
    formulas = ["=cmd|' /C calc'!A0", "+cell", "-2+3+A1", "@SUM(A1)", "\t=1"]
    found = list(csv.reader(io.StringIO(csv_table(formulas, [formulas]).decode(), newline="")))
    assert found == [[f"'{text}" for text in formulas]] * 2


def test_other_cells_come_back_as_they_were() -> None:
    cells = ["a, b", 'a "b"', "<script>", "é", "-0.3 to +0.1", "+1", "x=1", "", -0.5]
    table = csv_table(["number"], [cells]).decode()
    assert list(csv.reader(io.StringIO(table, newline="")))[1] == [str(cell) for cell in cells]
    assert csv_table(["a"], [["two\r\nlines\rof text"]]) == b"a\ntwo lines of text\n"
    assert csv_table(["a"], [["\udcff"]]) == b"a\n?\n"  # as in a file's name
