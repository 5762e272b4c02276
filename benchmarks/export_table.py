"""Tables of exported files: which were proven, and their times."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tokendetr.analysis.tables import Cell, Table

COLUMNS = {
    ("pt2", "torch.export"): "`pt2`",
    ("aoti", "aotinductor"): "`aoti`",
    ("onnx", "onnxruntime"): "`onnx`: ONNX Runtime",
    ("onnx", "openvino"): "`onnx`: OpenVINO",
    ("openvino", "openvino"): "`openvino`",
    ("onnx-custom", "onnxruntime"): "`onnx-custom`: ONNX Runtime",
    ("onnx-custom", "openvino"): "`onnx-custom`: OpenVINO",
}
"""(format, runtime) -> heading of the column."""
PROVEN = (
    "Largest difference of boxes (pixels) and scores from the model, over eight images of each "
    "file; ties: images with near ties that were decided otherwise; in parentheses, how many of "
    "the line's detectors were run, if not all."
)
TIMES = (
    "Milliseconds of one image that fills the canvas, in files that take images of any size; "
    "in parentheses, how many times faster a method is than its dense detector in the same runtime."
)


def proven_table(known: dict[str, Any], lines: Mapping[str, Sequence[str]]) -> Table:
    """Return the table of differences.

    Args:
        known: the record: "rows" by name and format.
        lines: text of each line, in the table's order -> names of its rows in the record.
    """
    columns = _columns(
        (format, runtime)
        for row in known["rows"].values()
        for format, cell in row.items()
        for runtime in cell.get("checks", {})
    )
    table: list[list[Cell]] = []
    for text, names in lines.items():
        rows = [known["rows"].get(name, {}) for name in names]
        padding = {cell["padding"] for row in rows for cell in row.values() if cell["works"]}
        images = " or ".join("any" if each else "canvas" for each in sorted(padding, reverse=True))
        differences = (_difference(rows, format, runtime) for format, runtime in columns)
        table.append([text, images or None, *differences])
    notes = [
        f"{name}, {format}: {cell['why']}"
        for name, row in known["rows"].items()
        for format, cell in row.items()
        if "why" in cell
    ]
    cells = [cell for row in known["rows"].values() for cell in row.values()]
    notes.append(f"`python benchmarks/export_matrix.py`, {_measured(cells)}")
    return Table("export-matrix", PROVEN, ("detectors", "images", *columns.values()), table, notes)


def times_table(known: dict[str, Any], dense_rows: Mapping[str, str]) -> Table:
    """Return the table of times, which has no lines before some were taken.

    Args:
        known: the record: "times" by name.
        dense_rows: name of each row, in the table's order -> that of its dense detector, or "".
    """
    times = known["times"]
    columns = _columns(
        (format, runtime)
        for row in times.values()
        for format, _, runtime in (run.partition(" ") for run in row["ms"])
    )
    table: list[list[Cell]] = []
    for name, dense in dense_rows.items():
        if name not in times:
            continue
        found = _with_ratios(times, name, dense)
        runs = (f"{format} {runtime}" for format, runtime in columns)
        table.append([name, found.get("model"), *(found.get(run) for run in runs)])
    threads = " or ".join(sorted({str(row["threads"]) for row in times.values()}))
    note = f"`python benchmarks/export_matrix.py --time`, {_measured(times.values())}"
    return Table(
        "export-times",
        TIMES if table else "Times were not taken yet.",
        ("detector", "the model itself", *columns.values()),
        table,
        (f"{note}, {threads} threads",) if table else (),
    )


def _columns(runs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the headings of the ways to run a file that occur, in the order of all."""
    occurring = set(runs)
    return {run: heading for run, heading in COLUMNS.items() if run in occurring}


def _measured(found: Collection[Mapping[str, Any]]) -> str:
    """Return the machines and the days of measurements."""
    machines = sorted({each["machine"] for each in found})
    days = sorted({each["date"] for each in found})
    return f"{' and '.join(machines)}, {' to '.join(days[:1] + days[1:][-1:])}"


def _with_ratios(times: dict[str, Any], name: str, dense: str) -> dict[str, str]:
    """Return each time of a row, and how many times that of its dense detector is as long."""
    own, other = (times.get(each, {}).get("ms", {}) for each in (name, dense))
    ratios = {run: f" ({other[run] / ms:.2f}x)" for run, ms in own.items() if run in other}
    return {run: f"{ms:.0f}{ratios.get(run, '')}" for run, ms in own.items()}


def _difference(rows: Sequence[dict[str, Any]], format: str, runtime: str) -> str | None:
    """Return the largest difference of some rows' files in a runtime; None if none was run."""
    cells = [row[format] for row in rows if format in row]
    found = [cell["checks"][runtime] for cell in cells if runtime in cell.get("checks", {})]
    refused = sum(not cell["works"] for cell in cells)
    if not found:
        return "no" if refused else None
    boxes, scores = (max(each[name] for each in found) for name in ("box_px", "score"))
    part = f" ({len(found)} of {len(rows)})" if len(found) < len(rows) else ""
    ties, images = (sum(each.get(name, 0) for each in found) for name in ("near_ties", "images"))
    tied = f", ties in {ties} of {images}" if ties else ""
    return f"{boxes:.1g} px, {scores:.0e}{tied}{part}"
