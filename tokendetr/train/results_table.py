"""Write ``results.csv`` and ``results.png``: a run's metrics as a table and as curves."""

import io
import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.engine import HookBase

from tokendetr.io.atomic import write_atomically
from tokendetr.io.csv_tables import csv_table
from tokendetr.train.writers import recorded_rows

__all__ = ["ResultsTable", "draw_curves", "results_csv"]

logger = logging.getLogger(__name__)

_FEWEST_POINTS = 5
_FIRST = ("iteration", "epoch", "total_loss", "lr")


class ResultsTable(HookBase):
    """Write ``results.csv`` and, given at least five logged lines, ``results.png``.

    The hook only reads ``metrics.json``. If it cannot write, it logs a warning and the run
    continues.

    Args:
        metrics_path: path of ``metrics.json``; the results are written beside it.
        period: iterations between updates of the table; 0 for the end only. The curves are drawn
            when training ends.
    """

    def __init__(self, metrics_path: str, period: int) -> None:
        self._path = metrics_path
        self._period = period

    def after_step(self) -> None:
        """Write the table after an evaluation."""
        if self._period and (self.trainer.iter + 1) % self._period == 0:
            self._write(with_curves=False)

    def after_train(self) -> None:
        """Write the table and the curves."""
        self._write(with_curves=True)

    def _write(self, *, with_curves: bool) -> None:
        rows = recorded_rows(self._path)
        stem = os.path.join(os.path.dirname(self._path), "results")
        try:
            if rows:
                write_atomically(f"{stem}.csv", results_csv(rows))
            if with_curves and len(rows) >= _FEWEST_POINTS:
                write_atomically(f"{stem}.png", draw_curves(rows))
        except OSError as error:
            logger.warning("The results of the run were not written: %s", error)


def results_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return rows of ``metrics.json`` as CSV: a column per metric, empty if a row lacks it."""
    names = {name for row in rows for name in row}
    columns = [name for name in _FIRST if name in names]
    columns += sorted(names - set(columns))
    return csv_table(columns, ([row.get(name, "") for name in columns] for row in rows))


def draw_curves(rows: Sequence[dict[str, Any]]) -> bytes:
    """Plot losses, metrics and learning rate over iterations.

    Args:
        rows: rows of ``metrics.json``.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    names = sorted({name for row in rows for name in row})
    panels = {
        "total loss": [name for name in names if name == "total_loss"],
        "losses of the last layer": [
            n for n in names if n.startswith("loss_") and not n.rpartition("_")[2].isdigit()
        ],
        "AP": [n for n in names if n.partition("/")[2] in ("AP", "AP50", "AP75")],
        "learning rate": [name for name in names if name == "lr"],
    }
    shown = {title: found for title, found in panels.items() if found}
    figure = Figure(figsize=(4.2 * len(shown), 3.4), layout="constrained")
    for axes, (title, found) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(),
                                    strict=True):  # fmt: skip
        for name in found:
            points = [(row["iteration"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 9 else "")
        axes.set(title=title, xlabel="iteration")
        axes.grid(alpha=0.3)
        if len(found) > 1:
            axes.legend(fontsize="x-small")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
