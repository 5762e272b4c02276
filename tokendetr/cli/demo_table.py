"""The rows of the demo's table, and its record."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import DictConfig

from tokendetr.analysis.recorded_rows import machine
from tokendetr.analysis.recorded_tables import RecordedTables, write_recorded
from tokendetr.analysis.tables import Cell, Table, splice
from tokendetr.config.files import PROJECTS_DIR
from tokendetr.config.load import load_config
from tokendetr.predict import Predictor

METRICS = ("AP", "AP50", "APs", "APm", "APl")
LARGE_PX = (800, 1216)
"""Height and width of an image of COCO's size."""
LARGE_RUNS = 3
"""Runs of each full-size network on such an image."""


@dataclass
class Candidate:
    """One row of the table.

    Attributes:
        title: how the row is called.
        config: a config's name.
        weights: checkpoint; None takes the one that comes with the config.
        metrics: box AP, AP50, APs and so on, 0 to 100.
        gflops, encoder_gflops: of one image, multiply-add = 1, mean over validation images.
        milliseconds: per image: median over validation images.
        large: config of the same kind of detector at full size; None if there is none.
        large_milliseconds: its time for one image of ``LARGE_PX``.
    """

    title: str
    config: str
    weights: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    gflops: float = 0.0
    encoder_gflops: float = 0.0
    milliseconds: float = 0.0
    large: str | None = None
    large_milliseconds: float | None = None
    predictor: Predictor | None = None

    def load(self) -> tuple[DictConfig, Predictor]:
        """Return the config, and the detector with its weights."""
        cfg = load_config(self.config, trained=True)
        if self.weights is not None:
            cfg.train.init_checkpoint = self.weights
        if self.predictor is None:
            self.predictor = Predictor.from_config(cfg)
        return cfg, self.predictor


def table(candidates: list[Candidate], images: int) -> Table:
    """Return the table that the demo ends with; AP is that of so many validation images."""
    size = " x ".join(map(str, LARGE_PX))
    return Table(
        name="demo",
        title="",
        columns=("", *METRICS, "GFLOPs", "encoder GFLOPs", "ms/image", f"ms, R50 at {size}"),
        rows=[cells(candidate) for candidate in candidates],
        notes=(
            f"AP on the {images} validation images of shapes. A multiply-add counts 1.",
            "Last column: the same kind of detector at full size, random weights, one image; the "
            f"fastest of {LARGE_RUNS} runs, in turns.",
        ),
    )


def cells(candidate: Candidate) -> list[Cell]:
    """Return a row of the table; times at COCO's size are whole milliseconds."""
    large = candidate.large_milliseconds
    return [
        candidate.title,
        *(candidate.metrics[name] for name in METRICS),
        f"{candidate.gflops:.3f}",
        f"{candidate.encoder_gflops:.3f}",
        candidate.milliseconds,
        None if large is None else f"{large:.0f}",
    ]


def record_table(made: Table, folder: Path, write: bool) -> None:
    """Write the table beside the demo's results, and on request into its record and page."""
    recorded = RecordedTables(
        page="docs/start.md",
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=f"{machine()}, {torch.get_num_threads()} threads",
        commands=["make demo"],
        tables=[made],
    )
    write_recorded(folder / "results.json", recorded)
    if write:
        root = PROJECTS_DIR.parent
        write_recorded(root / "docs" / "records" / "demo.json", recorded)
        for shown in recorded.shown():
            splice(root / recorded.page, shown)
