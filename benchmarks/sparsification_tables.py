"""The tables of the study of sparsification, made of its recorded figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.sparsification_steps import LABELED, OTHER_DETECTORS, RATIOS, STEPS
from tokendetr.analysis.tables import Cell, Table

_NOT_RUN = "– was not run."
_SHORT_NAMES = {
    "scores": "scores, no bypass",
    "every": "scores and bypass in every layer",
    "context": "the same, with context",
    "outputs": "without context, then distilled from memory and outputs",
}


def tables(recorded: Mapping[str, Any]) -> list[Table]:
    """Return a table for each recorded config, and one for all detectors other than DINO."""
    found = [
        _table(config, entry) for config, entry in recorded.items() if config not in OTHER_DETECTORS
    ]
    others = {config: recorded[config] for config in OTHER_DETECTORS if config in recorded}
    return [*found, _detectors_table(others)] if others else found


def _table(config: str, entry: Mapping[str, Any]) -> Table:
    ratios = [ratio for ratio in RATIOS if str(ratio) in entry["gflops"]]
    encoders = [f"{entry['gflops'][str(ratio)][1]:.3f}" for ratio in ratios]
    dense = entry["gflops"]["None"][1]
    images, explained = _maps(entry, "curve 0")
    context = ""
    if any("curve with context" in seed for seed in entry["seeds"].values()):
        context = f", with context {_maps(entry, 'curve with context')[1]:.0f} %"
    return Table(
        name=f"bypass_{config}",
        title=f"AP of `{config}` by keep ratio, without a label (dense: {entry['dense']:.1f})",
        columns=("", *_headings(ratios)),
        rows=[
            *_rows(entry, ratios, STEPS | LABELED),
            [f"GFLOPs of the encoder (dense {dense:.3f})", *encoders],
        ],
        notes=(
            f"{_count(len(entry['seeds']))}; {_NOT_RUN}",
            f"The maps saw {images} images and explain {explained:.0f} % of the tokens' squared "
            f"movement in images held back{context}.",
            f"{entry['date']}, `{entry['command']}`",
        ),
    )


def _detectors_table(entries: Mapping[str, Any]) -> Table:
    ratios = [ratio for ratio in RATIOS if any(str(ratio) in e["gflops"] for e in entries.values())]
    rows: list[list[Cell]] = []
    for config, entry in entries.items():
        name: Cell = f"{OTHER_DETECTORS[config]} (dense: {entry['dense']:.1f})"
        rows += [[name, *row] for row in _rows(entry, ratios, _SHORT_NAMES)]
    explained = [f"{_maps(entry, 'curve 0')[1]:.0f}" for entry in entries.values()]
    return Table(
        name="bypass_detectors",
        title="AP of other detectors on shapes by keep ratio, without a label",
        columns=("detector", "", *_headings(ratios)),
        rows=rows,
        notes=(
            f"{_count(max(len(entry['seeds']) for entry in entries.values()))}; {_NOT_RUN}",
            f"The maps explain {', '.join(explained)} % of the tokens' squared movement in images "
            "held back, in this order.",
            *(f"{entry['date']}, `{entry['command']}`" for entry in entries.values()),
        ),
    )


def _count(seeds: int) -> str:
    if seeds == 1:
        return "One seed"
    return (
        f"Mean over {seeds} seeds (each with other images), smallest and largest in parentheses; "
        "figures without them are of one seed"
    )


def _headings(ratios: Sequence[float]) -> list[str]:
    return [f"keep {ratio:g}" for ratio in ratios]


def _rows(
    entry: Mapping[str, Any], ratios: Sequence[float], names: Mapping[str, str]
) -> list[list[Cell]]:
    """Return a row for each named step that is recorded: its name, and its AP at each ratio."""
    seeds = list(entry["seeds"].values())
    rows = []
    for step, name in names.items():
        measured = [seed[step] for seed in seeds if step in seed]
        if not measured:
            continue
        few = f" ({len(measured)} seeds)" if 1 < len(measured) < len(seeds) else ""
        cells: list[Cell] = [name + few]
        for ratio in ratios:
            found = [run[key] for run in measured for key in (str(ratio), "None") if key in run]
            cells.append(_spread(found) if found else None)
        rows.append(cells)
    return rows


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f}–{max(values):.1f})"


def _maps(entry: Mapping[str, Any], curve: str) -> tuple[int, float]:
    """Return the most images that maps were fitted to, and the least percentage they explain."""
    fitted = [seed[curve][-1] for seed in entry["seeds"].values() if curve in seed]
    return max(images for images, _ in fitted), min(100 * (1 - error) for _, error in fitted)
