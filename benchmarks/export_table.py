"""Table of exported files: a line per detector, a column per runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokendetr.analysis.tables import Table

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
TITLE = (
    "Largest differences of boxes (pixels) and scores from the model on eight images, and the time "
    "of one image that fills the canvas, beside the model's own (optimized for CPUs); in "
    "parentheses, how many times faster a method is than its dense detector in the same runtime."
)


def table(known: dict[str, Any], dense_rows: Mapping[str, str]) -> Table:
    """Return the table of a record.

    Args:
        known: the record: "rows" by name and format, "times" by name, "machine", "date".
        dense_rows: name of each row, in the table's order -> that of its dense detector, or "".
    """
    columns = {
        (format, runtime): heading
        for (format, runtime), heading in COLUMNS.items()
        if any(runtime in row.get(format, {}).get("checks", {}) for row in known["rows"].values())
    }
    lines: list[list[Any]] = []
    notes: list[str] = []
    for name, dense in dense_rows.items():
        if name not in known["rows"]:
            continue
        cells = known["rows"][name]
        times = _with_ratios(known["times"], name, dense)
        padded = next((each["padding"] for each in cells.values() if each["works"]), None)
        line: list[Any] = [name, {True: "any", False: "canvas", None: None}[padded]]
        line.append(times.get("model"))
        for format, runtime in columns:
            line.append(_facts(cells.get(format), runtime, times.get(f"{format} {runtime}")))
        lines.append(line)
        notes += [f"{name}, {key}: {each['why']}" for key, each in cells.items() if "why" in each]
    notes.append(f"`python benchmarks/export_matrix.py`, {known['machine']}, {known['date']}")
    return Table(
        "export-matrix", TITLE, ("model", "images", "model itself", *columns.values()), lines, notes
    )


def _with_ratios(times: dict[str, Any], name: str, dense: str) -> dict[str, str]:
    """Return each time of a row, and how many times that of its dense detector is as long."""
    own, other = (times.get(each, {}).get("ms", {}) for each in (name, dense))
    ratios = {run: f" ({other[run] / ms:.2f}x)" for run, ms in own.items() if run in other}
    return {run: f"{ms:.0f} ms{ratios.get(run, '')}" for run, ms in own.items()}


def _facts(cell: dict[str, Any] | None, runtime: str, took: str | None) -> str | None:
    """Return what a runtime's column says of a file: differences and time, "no", or nothing."""
    if cell is None or (cell["works"] and runtime not in cell["checks"]):
        return None
    if not cell["works"]:
        return "no"
    found = cell["checks"][runtime]
    return f"{found['box_px']:.1g} px, {found['score']:.0e}" + (f"; {took}" if took else "")
