"""Record and plot the points of a sweep over keep ratios."""

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import matplotlib

from tokendetr.io.atomic import write_atomically
from tokendetr.io.csv_tables import csv_table

__all__ = ["Point", "points_of", "write"]


@dataclass(frozen=True)
class Point:
    """A measurement at one keep ratio; a row of the CSV.

    Attributes:
        method: how W is built; "dense" for the unchanged model.
        keep_ratio: keep ratio of every reduction, in (0, 1].
        metric: AP in percent, or the features' relative error.
        gflops: GFLOPs of the reduced part (backbone or encoder) for one image.
        milliseconds: median time of the whole model for one image.
    """

    method: str
    keep_ratio: float
    metric: float
    gflops: float
    milliseconds: float


def write(points: Sequence[Point], folder: Path, metric: str, part: str) -> None:
    """Write ``sweep.csv`` and ``sweep.png``, each atomically.

    Args:
        points: all points of the sweep.
        folder: folder to write to.
        metric: label of the metric's axis.
        part: the part whose GFLOPs are shown.
    """
    table = csv_table([field.name for field in fields(Point)], map(astuple, points))
    write_atomically(str(folder / "sweep.csv"), table)
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4), sharey=True, layout="constrained")
    for name in dict.fromkeys(point.method for point in points):
        line = [point for point in points if point.method == name]
        for axis, cost in zip(axes, ("gflops", "milliseconds"), strict=True):
            costs, scores = [getattr(p, cost) for p in line], [p.metric for p in line]
            axis.plot(costs, scores, "o-", label=name)
    axes[0].set(xlabel=f"GFLOPs of the {part}", ylabel=metric)
    axes[1].set(xlabel="milliseconds per image")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    pyplot.close(figure)
    write_atomically(str(folder / "sweep.png"), png.getvalue())


def points_of(folder: Path) -> list[Point]:
    """Return the points of an earlier sweep; empty if there was none."""
    path = folder / "sweep.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Point(row["method"], *(float(row[field.name]) for field in fields(Point)[1:]))
            for row in csv.DictReader(file)
        ]
