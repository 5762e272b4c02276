"""Compare a sparse detector with its dense original: agreement and cost."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from detectron2.structures import Instances, pairwise_iou
from torch import nn

from tokendetr.analysis.flops import count_flops
from tokendetr.analysis.tables import Table
from tokendetr.analysis.timing import timed
from tokendetr.sparsification.images import UnlabeledImages

__all__ = ["Row", "SparsificationReport", "agreement", "compare"]

CONFIDENT = 0.3
"""Detections with at least this score are compared."""
OVERLAP = 0.5
"""Least IoU of two detections of a class that count as the same."""
_TIMED_IMAGES = 8
_COUNTED_IMAGES = 4


@dataclass(frozen=True)
class Row:
    """One detector.

    Attributes:
        name: of the detector.
        agreement: confident detections shared with the dense detector, F1 in percent; None for the
            dense detector.
        gflops: of one image, mean of a few held-back ones.
        encoder_gflops: of the encoder alone.
        milliseconds: median of one image.
        ap: box AP in percent; None if it was not measured.
    """

    name: str
    agreement: float | None
    gflops: float
    encoder_gflops: float
    milliseconds: float
    ap: float | None = None


@dataclass(frozen=True)
class SparsificationReport:
    """Result of making a detector sparse.

    Attributes:
        rows: the dense detector first.
        held_back: number of images that agreement was measured on.
        fit: fields of :class:`tokendetr.sparsification.FitResult`.
        seconds: time of each stage.
    """

    rows: Sequence[Row]
    held_back: int
    fit: dict[str, Any]
    seconds: dict[str, float]

    def table(self) -> Table:
        """Return the rows as a table."""
        return Table(
            name="sparsification",
            title="",
            columns=("detector", "agreement", "AP", "GFLOPs", "encoder", "ms"),
            rows=[
                (
                    row.name,
                    row.agreement,
                    row.ap,
                    f"{row.gflops:.2f}",
                    f"{row.encoder_gflops:.2f}",
                    row.milliseconds,
                )
                for row in self.rows
            ],
            notes=(
                f"agreement: detections with a score of at least {CONFIDENT} that dense and "
                f"sparse detector share, F1 in percent, on {self.held_back} images held back",
            ),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}


def agreement(pairs: Sequence[tuple[Instances, Instances]]) -> float:
    """Return the F1 score, in percent, of confident detections that two detectors share.

    Detections of one class match one to one, best first, from an IoU of :data:`OVERLAP` on. Two
    detectors without any confident detection agree.

    Args:
        pairs: per image the detections of both.
    """
    matched = total = 0
    for first, second in pairs:
        first, second = first[first.scores >= CONFIDENT], second[second.scores >= CONFIDENT]
        total += len(first) + len(second)
        overlaps = pairwise_iou(first.pred_boxes, second.pred_boxes)
        same = first.pred_classes[:, None] == second.pred_classes
        overlaps = overlaps.masked_fill(~same, 0.0)
        for index in first.scores.argsort(descending=True).tolist():
            if not overlaps.shape[1]:
                break
            best = int(overlaps[index].argmax())
            if overlaps[index, best] >= OVERLAP:
                matched += 1
                overlaps[:, best] = 0.0
    return 200.0 * matched / total if total else 100.0


@torch.no_grad()
def compare(
    detectors: dict[str, nn.Module], images: UnlabeledImages, *, device: torch.device
) -> list[Row]:
    """Measure detectors on held-back images; the first one is the dense detector.

    Args:
        detectors: in evaluation mode, by name.
        images: the held-back ones are used.
        device: of the detectors.
    """
    found: dict[str, list[Instances]] = {name: [] for name in detectors}
    for path in images.held_back:
        record = images.read(path)
        for name, detector in detectors.items():
            found[name].append(detector([record])[0]["instances"].to("cpu"))
    timed_records = [images.read(path) for path in images.held_back[:_TIMED_IMAGES]]
    seconds: dict[str, list[float]] = {name: [] for name in detectors}
    for record in timed_records:  # alternating, so that a busy machine slows all detectors equally
        for name, detector in detectors.items():
            seconds[name].append(_seconds(detector, record, device))
    reference = next(iter(detectors))
    rows = []
    for name, detector in detectors.items():
        counts = [
            count_flops(detector, [record], arithmetic=False)
            for record in timed_records[:_COUNTED_IMAGES]
        ]
        pairs = list(zip(found[reference], found[name], strict=True))
        rows.append(
            Row(
                name=name,
                agreement=None if name == reference else agreement(pairs),
                gflops=statistics.mean(count.total for count in counts) / 1e9,
                encoder_gflops=statistics.mean(c.by_part["encoder"] for c in counts) / 1e9,
                milliseconds=1e3 * statistics.median(seconds[name]),
            )
        )
    return rows


def _seconds(detector: nn.Module, record: dict[str, Any], device: torch.device) -> float:
    return timed(lambda: detector([record]), device)
