"""Shared parts of the operators' benchmarks: command line, one line per case and pass, JSON."""

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tokendetr.analysis.inputs import write_json
from tokendetr.analysis.recorded_rows import machine
from tokendetr.analysis.recorded_tables import RecordedTables, read_recorded, write_recorded
from tokendetr.analysis.tables import Table, splice
from tokendetr.analysis.timing import Summary
from tokendetr.ops import extension_available, library_facts

DTYPES = ("float64", "float32", "bfloat16", "float16")
PASSES = ("forward", "forward+backward")
ROOT = Path(__file__).resolve().parents[1]


def operator_parser(description: str | None, cases: Iterable[str]) -> argparse.ArgumentParser:
    """Return the common parser of the operators' benchmarks; exit if there is no extension."""
    if not extension_available():
        sys.exit("the extension is not built: run `make build`")
    names = list(cases)
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=DTYPES)
    parser.add_argument("--cases", nargs="+", default=names, choices=names)
    parser.add_argument("--repeats", type=int, default=20, help="runs of the kernels per line")
    parser.add_argument("--json", metavar="FILE", help="also write the lines to FILE")
    parser.add_argument(
        "--record",
        nargs="?",
        const=Path(sys.argv[0]).stem,
        metavar="NAME",
        help="replace docs/records/NAME.json and its table in docs/performance.md "
        "(default the benchmark's name)",
    )
    return parser


def milliseconds(function: Callable[[], object], device: torch.device) -> float:
    """Return the time of one call; on a GPU the mean of ten calls, measured by events."""
    if device.type == "cuda":
        calls = 10
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / calls
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


@dataclass(frozen=True)
class Line:
    """One pass of one case, in milliseconds.

    Attributes:
        case: description of the case.
        dtype: dtype of the values.
        passes: "forward" or "forward+backward".
        kernel: times of the kernels.
        kernel_min: the shortest of them.
        other: times of PyTorch's form.
        ratio: PyTorch's median divided by the kernels'.
        baseline_min: the shortest time of a third form, if there is one.
    """

    case: str
    dtype: str
    passes: str
    kernel: Summary
    kernel_min: float
    other: Summary
    ratio: float
    baseline_min: float | None = None

    @classmethod
    def of(
        cls,
        case: str,
        dtype: str,
        passes: str,
        kernel: list[float],
        other: list[float],
        baseline_min: float | None = None,
    ) -> "Line":
        """Summarize the times of both forms."""
        ours, theirs = Summary.of(kernel), Summary.of(other)
        ratio = theirs.median / ours.median
        return cls(case, dtype, passes, ours, min(kernel), theirs, ratio, baseline_min)


class Report:
    """Print lines as they are measured, and collect them for the JSON file.

    Args:
        other: name of PyTorch's form.
        baseline: name of the third form, or None.
        device: the measured device.
        setting: what else the figures depend on.
    """

    def __init__(
        self,
        other: str,
        *,
        baseline: str | None = None,
        device: torch.device,
        setting: Mapping[str, object] | None = None,
    ) -> None:
        self._lines: list[Line] = []
        self._digits = 3 if device.type == "cuda" else 2
        self._baseline = baseline
        self._setting = {
            **(setting or {}),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "instruction set": library_facts().instruction_set,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        print(", ".join(f"{name} {value}" for name, value in self._setting.items()))
        third = f"{baseline:>12}" if baseline else ""
        print(
            f"{'case':30}{'dtype':10}{'pass':18}{'ms (min / median / p90 - p10)':>30}"
            f"{other:>13}{'ratio':>8}{third}"
        )

    def add(self, line: Line) -> None:
        """Print a line and keep it."""
        self._lines.append(line)
        spread = line.kernel.p90 - line.kernel.p10
        times = " / ".join(
            f"{value:.{self._digits}f}" for value in (line.kernel_min, line.kernel.median, spread)
        )
        third = ""
        if self._baseline:
            shortest = line.baseline_min
            third = f"{'not run' if shortest is None else f'{shortest:.3f}':>12}"
        print(
            f"{line.case:30}{line.dtype:10}{line.passes:18}{times:>30}"
            f"{line.other.median:13.{self._digits - 1}f}{line.ratio:8.1f}{third}",
            flush=True,
        )

    def write(self, target: str | None) -> None:
        """Write setting and lines to a JSON file, if one is requested."""
        if target:
            lines = [asdict(line) for line in self._lines]
            write_json({"setting": self._setting, "lines": lines}, target)

    def record(self, name: str) -> None:
        """Replace the lines of docs/records/``name``.json and its table in docs/performance.md."""
        file = ROOT / "docs" / "records" / f"{name}.json"
        (known,) = read_recorded(file).tables
        dtypes = list(dict.fromkeys(line.dtype for line in self._lines))
        columns = [(dtype, passes) for dtype in dtypes for passes in PASSES]
        cells = {
            (line.case, line.dtype, line.passes): f"{line.kernel.median:.2f} ms, {line.ratio:.1f}x"
            for line in self._lines
        }
        spread = max(
            (line.kernel.p90 - line.kernel.p10) / line.kernel.median for line in self._lines
        )
        table = Table(
            name=name,
            title=known.title,
            columns=["case", *(f"{passes}, {dtype}" for dtype, passes in columns)],
            rows=[
                [case, *(cells.get((case, dtype, passes)) for dtype, passes in columns)]
                for case in dict.fromkeys(line.case for line in self._lines)
            ],
            notes=[
                known.notes[0],
                f"The kernels' times spread (90th - 10th percentile) by up to {spread:.0%}.",
            ],
        )
        setting = f"{self._setting['threads']} threads, {self._setting['instruction set']}"
        recorded = RecordedTables(
            page="docs/performance.md",
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            machine=f"{machine()}, {setting}",
            commands=[" ".join(["python", *sys.argv])],
            tables=[table],
        )
        write_recorded(file, recorded)
        for shown in recorded.shown():
            splice(ROOT / recorded.page, shown)
