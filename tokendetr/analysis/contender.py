"""One of several models that are measured in turns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tokendetr.analysis.timing import peak_memory, reset_peak_memory

__all__ = ["Contender", "Shapes", "image_shapes"]

Shapes = tuple[tuple[int, int], ...]
"""Height and width of each image of a batch."""


@dataclass
class Contender:
    """A config that is measured.

    Attributes:
        name: file name of the config.
        device: device that it runs on.
        step: takes one measurement: runs the next batch and returns the seconds of each part and
            the total.
        shapes: height and width of each batch's images, in the order of the measurements, which
            repeats; empty if they do not matter.
        samples: part -> seconds of each measurement.
        peak_bytes: peak memory during a measurement.
    """

    name: str
    device: torch.device
    step: Callable[[], dict[str, float]]
    shapes: Sequence[Shapes] = ()
    samples: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: int = 0

    def warm_up(self, runs: int) -> None:
        """Run without measuring, at least until every shape of image has passed once.

        The first pass of a shape also prepares kernels for it.

        Args:
            runs: least number of runs; 0 measures from the first pass on.
        """
        new = [i for i, shapes in enumerate(self.shapes) if shapes not in self.shapes[:i]]
        last = new[-1] + 1 if new else 0
        for _ in range(max(runs, last) if runs else 0):
            self.step()

    def measure(self) -> None:
        """Take one measurement."""
        reset_peak_memory(self.device)
        for part, seconds in self.step().items():
            self.samples.setdefault(part, []).append(seconds)
        self.peak_bytes = max(self.peak_bytes, peak_memory(self.device))


def image_shapes(batch: Sequence[dict[str, Any]]) -> Shapes:
    """Return height and width of a batch's images."""
    return tuple(tuple(record["image"].shape[-2:]) for record in batch)
