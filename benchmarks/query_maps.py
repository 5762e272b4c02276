"""Positions of Dynamic DETR's queries at the image sizes of detectors: drawings and shares.

    python -m benchmarks.query_maps             # record the figures, write the drawing
    python -m benchmarks.query_maps --splice    # only write the recorded figures into its page

Levels are rarely multiples of their windows. If windows that the border cuts never merge, the
remaining queries accumulate in the last rows and columns; here each axis is divided into nearly
equal parts instead. Both are shown on noise features, by the share of a level's queries in its last
window of rows and columns beside the share of its tokens there.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from dynamic_detr import DynamicSparsifier
from tokendetr.analysis.flops import pyramid_shapes
from tokendetr.analysis.recorded_rows import machine
from tokendetr.analysis.tables import Table, splice
from tokendetr.encoder import EncoderContext
from tokendetr.io.atomic import write_atomically
from tokendetr.tokens import LevelLayout

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "dynamic_queries" / "results.json"
DRAWING = ROOT / "docs" / "images" / "dynamic_queries.png"
PAGE = ROOT / "docs" / "reproduction" / "measurements" / "dynamic_detr.md"
SIZES = ((800, 1066), (750, 1333), (800, 800), (480, 640))
RATIOS = ((0.5, 0.4, 0.3, 0.2), (0.4, 0.3, 0.2, 0.1))
STAGE, LAYER, LEVEL = 1, 2, 0
"""What is shown: the second stage, its first layer, the finest level."""
IMAGES, CHANNELS = 4, 32


def divided(sparsifier: DynamicSparsifier, layout: LevelLayout) -> Tensor:
    """Return the method's queries in a level of noise, bool [H, W]: nearly equal windows merge."""
    x_1NC = torch.randn(1, layout.num_tokens, CHANNELS)
    context = EncoderContext(
        layout=layout,
        memory_BNC=x_1NC,
        query_pos_BNC=None,
        reference_points_BNL2=layout.reference_points_BNL2(),
        num_layers=sparsifier.budget.num_layers,
        run_dense=lambda: x_1NC,
    )
    anchor_1K = sparsifier.plan(context).token_map(LAYER, x_1NC).anchor_BK
    assert anchor_1K is not None
    chosen_1N = torch.zeros(1, layout.num_tokens, dtype=torch.bool)
    chosen_1N[0, anchor_1K[0]] = True
    return layout.grid(chosen_1N, LEVEL)[0]


def cut(sparsifier: DynamicSparsifier, layout: LevelLayout) -> Tensor:
    """Return the queries if windows that the border cuts never merged, bool [H, W].

    On noise every whole window is as likely to merge as another.
    """
    height, width = layout.level_shapes[LEVEL]
    side = sparsifier.budget.window_sizes[LEVEL]
    ratio = sparsifier.budget.level_ratios(STAGE)[LEVEL]
    rows, columns = height // side, width // side
    merged = min(int(height * width * (1 - ratio) / (side**2 - 1)), rows * columns)
    is_merged = torch.zeros(rows * columns, dtype=torch.bool)
    is_merged[torch.randperm(rows * columns)[:merged]] = True
    inside_HW = is_merged.view(rows, columns).repeat_interleave(side, 0).repeat_interleave(side, 1)
    inside_HW[side - 1 :: side, side - 1 :: side] = False  # where the merged queries stand
    query_HW = torch.ones(height, width, dtype=torch.bool)
    query_HW[: rows * side, : columns * side] = ~inside_HW
    return query_HW


def strip_of(height: int, width: int, cells: int) -> Tensor:
    """Return the last rows and columns, bool [H, W]."""
    strip_HW = torch.zeros(height, width, dtype=torch.bool)
    strip_HW[height - cells :], strip_HW[:, width - cells :] = True, True
    return strip_HW


def record() -> tuple[list[dict[str, Any]], dict[str, tuple[Tensor, Tensor]]]:
    """Return the shares of all sizes and ratios in percent, and maps of the first ratios."""
    torch.manual_seed(0)
    rows, maps = [], {}
    for ratios in RATIOS:
        sparsifier = DynamicSparsifier(alignment="off", keep_ratios=ratios).eval()
        for size in SIZES:
            shapes = pyramid_shapes(*size)
            layout = LevelLayout.from_valid_sizes(shapes, [shapes])
            strip_HW = strip_of(*shapes[LEVEL], sparsifier.budget.window_sizes[LEVEL])
            seen = {
                name: [rule(sparsifier, layout) for _ in range(IMAGES)]
                for name, rule in (("before", cut), ("after", divided))
            }
            shares = {
                name: 100
                * float(sum((q & strip_HW).sum() for q in queries))
                / float(sum(q.sum() for q in queries))
                for name, queries in seen.items()
            }
            tokens = 100 * float(strip_HW.float().mean())
            rows.append({"size": size, "ratios": ratios, "tokens": tokens, **shares})
            if ratios == RATIOS[0]:
                maps[f"{size[0]} x {size[1]}"] = (seen["before"][0], seen["after"][0])
    return rows, maps


def draw(maps: dict[str, tuple[Tensor, Tensor]], path: Path) -> None:
    """Draw both maps of each size, queries dark."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(maps), figsize=(12, 5), layout="constrained")
    for column, (size, pair) in enumerate(maps.items()):
        for row, (name, query_HW) in enumerate(
            zip(("cut windows never merge", "nearly equal parts"), pair, strict=True)
        ):
            axes[row, column].imshow(~query_HW, cmap="gray", interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, column].set_title(f"{size}: {name}", fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    pyplot.close(figure)
    write_atomically(str(path), content.getvalue())


def table(recorded: dict[str, Any]) -> Table:
    """Return the recorded shares as a table."""
    rows = [
        (
            " x ".join(map(str, row["size"])),
            " ".join(f"{ratio:g}".lstrip("0") for ratio in row["ratios"]),
            *(f"{row[key]:.0f} %" for key in ("tokens", "before", "after")),
        )
        for row in recorded["rows"]
    ]
    return Table(
        name="border",
        title="Share of the finest level's queries in its last window of rows and columns, stage 2",
        columns=("image", "keep ratios", "tokens there", "cut windows never merge", "here"),
        rows=rows,
        notes=(
            f"{recorded['date']}, `{recorded['command']}` ({IMAGES} draws of noise), "
            f"{recorded['machine']}",
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--splice", action="store_true", help="only write the page")
    args = parser.parse_args(arguments)
    if not args.splice:
        rows, maps = record()
        recorded = {
            "command": "python -m benchmarks.query_maps",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
            "rows": rows,
        }
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(str(RESULTS), (json.dumps(recorded, indent=1) + "\n").encode())
        draw(maps, DRAWING)
    made = table(json.loads(RESULTS.read_text()))
    sys.stdout.write(made.markdown())
    splice(PAGE, made)


if __name__ == "__main__":
    main()
