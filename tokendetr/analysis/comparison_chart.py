"""Chart of a comparison: accuracy against operations, one line per series of rows."""

from __future__ import annotations

import io
import statistics

from tokendetr.analysis.comparison import Comparison, Measured

__all__ = ["draw_comparison"]

_OFFSETS = ((-6, 7), (7, -3), (3, -12))
"""Places of the labels of neighboring series, in points from a mark: above, beside, below."""
_PANELS = (("AP", "AP, all objects"), ("APs", "AP, small objects"))


def draw_comparison(comparison: Comparison, measured: Measured) -> bytes:
    """Plot AP, and AP of small objects, against GFLOPs; means over seeds.

    Rows named ``SERIES at POINT`` are connected by series, and each point is labeled.

    Args:
        comparison: the comparison.
        measured: its measurements; rows without any are left out.

    Returns:
        A PNG file.

    Raises:
        ValueError: nothing has been measured.
    """
    from matplotlib.figure import Figure

    series: dict[str, list[tuple[str, list[dict[str, float]]]]] = {}
    for row in comparison.contestants:
        if runs := measured.get(row.slug):
            name, _, point = row.name.partition(" at ")
            series.setdefault(name, []).append((point, [dict(run) for run in runs.values()]))
    if not series:
        raise ValueError(f"nothing of {comparison.name} has been measured")
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        for number, (name, points) in enumerate(series.items()):
            beside = _OFFSETS[number % len(_OFFSETS)]
            costs = [runs[0]["gflops"] for _, runs in points]
            values = [statistics.mean(run[metric] for run in runs) for _, runs in points]
            axes.plot(costs, values, marker="o", label=name)
            for (point, _), x, y in zip(points, costs, values, strict=True):
                axes.annotate(point, (x, y), beside, textcoords="offset points", fontsize=8)
        axes.set(title=title, xlabel="GFLOPs per image", ylabel=metric)
        axes.margins(0.12)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100, metadata={"Software": None})
    return png.getvalue()
