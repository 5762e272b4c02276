"""Plotly figures of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokendetr.errors import ConfigError
from tokendetr.evaluation.error_analysis import BACKGROUND, Analysis
from tokendetr.report.run import Run

__all__ = ["analysis_figures", "cost_figures", "load_plotly", "training_figures"]

_MOST_POINTS = 400
_MOST_CLASSES = 20
_MOST_CELLS = 100  # rows of the confusion matrix
_MOST_IN_LEGEND = 8
COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#882255", "#44AA99", "#332288", "#999933", "#661100", "#6699CC"),
)
"""Colors of Okabe and Ito, and of Tol, which color-blind readers can distinguish."""

Figure = dict[str, Any]


def load_plotly() -> Any:
    """Import and return ``plotly``.

    Raises:
        ConfigError: it is not installed; the message says how to install it.
    """
    try:
        import plotly.graph_objects
        import plotly.offline
    except ImportError as error:
        raise ConfigError("a report needs plotly: pip install 'tokendetr[report]'") from error
    return plotly


def _figure(traces: Sequence[Any], title: str, x: str, y: str, **layout: Any) -> Figure:
    go = load_plotly().graph_objects
    figure = go.Figure(traces)
    figure.update_layout(
        title={"text": title, "x": 0.02, "font": {"size": 15}},
        xaxis_title=x,
        yaxis_title=y,
        template="plotly_white",
        colorway=COLORS,
        margin={"l": 56, "r": 16, "t": 44, "b": 48},
        legend={"orientation": "h", "y": -0.26, "font": {"size": 11}},
        **layout,
    )
    found: Figure = figure.to_plotly_json()
    return found


def _thin(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    step = max(1, len(points) // _MOST_POINTS)
    kept = [*points[::step], *points[-1:]] if step > 1 else points
    return [x for x, _ in kept], [y for _, y in kept]


def training_figures(runs: Sequence[Run]) -> list[Figure]:
    """Plot loss, AP and learning rate over iterations, for runs that were trained here."""
    go = load_plotly().graph_objects
    figures = []
    for key, title, y in (
        ("total_loss", "Training loss", "total loss"),
        ("bbox/AP", "Accuracy in training", "AP"),
        ("lr", "Learning rate", "learning rate"),
    ):
        traces = []
        for run in runs:
            points = [(row["iteration"], row[key]) for row in run.rows if key in row]
            if points:
                x, values = _thin(points)
                mode = "lines+markers" if len(points) < 30 else "lines"
                traces.append(go.Scatter(x=x, y=values, name=run.name, mode=mode))
        if traces:
            figures.append(_figure(traces, title, "iteration", y, showlegend=True))
    return figures


def cost_figures(runs: Sequence[Run]) -> list[Figure]:
    """Plot AP over GFLOPs and over milliseconds for several runs."""
    go = load_plotly().graph_objects
    figures = []
    for key, unit in (("gflops", "GFLOPs per image"), ("ms", "ms per image")):
        traces = [
            go.Scatter(
                x=[run.cost[key]],
                y=[run.analysis.metrics["AP"]],
                name=run.name,
                mode="markers",  # names are in the legend: labels of near points would overlap
                marker={"size": 12},
                cliponaxis=False,
                hovertemplate=f"{run.name}<br>%{{x:.3g}} {unit}<br>AP %{{y:.1f}}<extra></extra>",
            )
            for run in runs
        ]
        highest = max(run.cost[key] for run in runs)
        figures.append(
            _figure(
                traces,
                f"AP against {unit}",
                unit,
                "AP",
                showlegend=True,
                xaxis={"range": [0, 1.1 * highest]},
            )
        )
    return figures


def analysis_figures(analysis: Analysis, colors: Mapping[str, str]) -> list[Figure]:
    """Plot precision and recall, F1, confusion matrix, calibration and error types of one run.

    Args:
        analysis: the run's analysis.
        colors: class name -> color, as on the images.
    """
    return [
        _curves(analysis, colors, "recall", "precision", "Precision and recall at IoU 0.5"),
        _curves(analysis, colors, "score", "f1", "F1 by score threshold"),
        _confusion(analysis),
        _calibration(analysis),
        _errors(analysis),
    ]


def _shown_classes(analysis: Analysis) -> Sequence[Mapping[str, Any]]:
    return sorted(analysis.classes, key=lambda row: -row["boxes"])[:_MOST_CLASSES]


def _curves(analysis: Analysis, colors: Mapping[str, str], x: str, y: str, title: str) -> Figure:
    go = load_plotly().graph_objects
    traces = [
        go.Scatter(
            x=analysis.curves[row["name"]][x],
            y=analysis.curves[row["name"]][y],
            customdata=analysis.curves[row["name"]]["score"],
            name=row["name"],
            mode="lines",
            line={"color": colors[row["name"]]},
            hovertemplate=f"{row['name']}<br>{x} %{{x:.3f}}, {y} %{{y:.3f}}"
            "<br>score %{customdata:.3f}<extra></extra>",
        )
        for row in _shown_classes(analysis)
    ]
    axes = {"range": [0, 1.02]}
    y = y.replace("f1", "F1")
    legend = len(traces) <= _MOST_IN_LEGEND  # more are identified by hovering
    return _figure(traces, title, x, y, showlegend=legend, xaxis=axes, yaxis=axes)


def _joined(analysis: Analysis) -> tuple[list[str], list[list[int]]]:
    """Return names and counts of the confusion matrix, with the rarest of many classes as one."""
    names = [*(row["name"] for row in analysis.classes), BACKGROUND]
    if len(names) <= _MOST_CELLS:
        return names, analysis.confusion
    most = sorted(range(len(names) - 1), key=lambda index: -analysis.classes[index]["boxes"])
    kept = sorted(most[: _MOST_CELLS - 2])
    target = np.full(len(names), len(kept))  # the place of all others
    target[kept], target[-1] = np.arange(len(kept)), len(kept) + 1
    counts = np.zeros((len(kept) + 2, len(kept) + 2), dtype=int)
    np.add.at(counts, (target[:, None], target), np.asarray(analysis.confusion))
    others = f"{len(names) - 1 - len(kept)} other classes"
    return [*(names[index] for index in kept), others, BACKGROUND], counts.tolist()


def _confusion(analysis: Analysis) -> Figure:
    go = load_plotly().graph_objects
    names, counts = _joined(analysis)
    shares = [[value / max(1, sum(row)) for value in row] for row in counts]
    is_labeled = len(names) <= _MOST_CLASSES
    trace = go.Heatmap(
        z=shares,
        x=names,
        y=names,
        text=[[str(value or "") for value in row] for row in counts],
        texttemplate="%{text}" if is_labeled else None,
        colorscale="Blues",
        zmin=0,
        zmax=1,
        colorbar={"title": "share", "thickness": 12},
        hovertemplate="%{y} detected as %{x}: %{text}<extra></extra>",
    )
    figure = _figure([trace], "Confusion matrix at the best thresholds", "detected as", "truth")
    figure["layout"]["yaxis"]["autorange"] = "reversed"
    if not is_labeled:  # there is no room for so many names; hovering over a cell shows them
        for axis in ("xaxis", "yaxis"):
            figure["layout"][axis] |= {"showticklabels": False, "automargin": False}
    return figure


def _calibration(analysis: Analysis) -> Figure:
    go = load_plotly().graph_objects
    bins = [each for each in analysis.calibration["bins"] if each["count"]]
    ideal = go.Scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="ideal", line={"dash": "dot", "color": "#777"}
    )
    found = go.Bar(
        x=[(each["lower"] + each["upper"]) / 2 for each in bins],
        y=[each["precision"] for each in bins],
        width=[0.9 * (each["upper"] - each["lower"]) for each in bins],
        customdata=[each["count"] for each in bins],
        name="precision of the bin",
        hovertemplate="score %{x:.2f}: precision %{y:.2f} of %{customdata}<extra></extra>",
    )
    error = analysis.calibration["error"]
    title = f"Calibration (expected error {error:.3f})"
    axes = {"range": [0, 1.02]}
    return _figure([found, ideal], title, "score", "precision", xaxis=axes, yaxis=axes)


def _errors(analysis: Analysis) -> Figure:
    go = load_plotly().graph_objects
    kinds = list(analysis.errors)[::-1]
    trace = go.Bar(
        x=[analysis.errors[kind]["ap50"] for kind in kinds],
        y=[kind.replace(" and ", "<br>and ") for kind in kinds],
        orientation="h",
        text=[f"{analysis.errors[kind]['count']}" for kind in kinds],
        hovertemplate="%{y}: %{text} at the best thresholds, %{x:.1f} AP50<extra></extra>",
    )
    title = "Error types and their cost"
    figure = _figure([trace], title, "AP50 gained without them", "", showlegend=False)
    figure["layout"]["margin"]["l"] = 120
    return figure
