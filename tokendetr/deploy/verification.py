"""Verify that an exported file computes the same as the model.

Shapes: T detections per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from tokendetr.data.shapes.random import IntegerRandom
from tokendetr.data.shapes.scene import make_scene
from tokendetr.deploy.entry import FixedDetections
from tokendetr.deploy.runtimes import Runner
from tokendetr.detector.images import check_image, describe

BOX_TOLERANCE_PX = 0.5
SCORE_TOLERANCE = 1e-4
NUDGE = 0.01
"""Largest change of pixel values (0 to 255) in :func:`compare`; it is far below what is visible."""
_NUDGES = (0.03, 0.1, 0.3, 1.0) * 2
"""Shares of :data:`NUDGE` that are tried; a large change may flip other near ties as well."""
_MOST_CUT = 0.1
"""Largest share of detections that may tie with the last one; more would make the test void."""
Size = tuple[int, int]

_SHARES = ((1.0, 1.0), (0.75, 1.0), (1.0, 0.6), (0.5, 0.8), (0.9, 0.45), (0.62, 0.62), (0.4, 1.0))


def verification_images(canvas: Size, *, padding: bool, count: int = 8) -> list[Tensor]:
    """Return synthetic images from a fixed seed, float [3, H, W] of integer pixel values.

    Args:
        canvas: maximum height and width.
        padding: make images of different sizes; otherwise all fill the canvas.
        count: number of images.
    """
    images = []
    for index in range(count):
        rows, columns = _SHARES[index % len(_SHARES)] if padding else (1.0, 1.0)
        size = (max(1, round(canvas[0] * rows)), max(1, round(canvas[1] * columns)))
        scene = torch.from_numpy(make_scene(IntegerRandom(index)).image_HWC.copy())
        pixels = scene.permute(2, 0, 1)[None].float()
        resized = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear")
        images.append(resized[0].round())
    return images


def padded_inputs(images: Sequence[Tensor], canvas: Size) -> tuple[Tensor, Tensor]:
    """Return a program's inputs: images in the upper left of gray canvases, and their sizes."""
    canvases = torch.full((len(images), 3, *canvas), 127.0)
    for row, image in zip(canvases, images, strict=True):
        row[:, : image.shape[-2], : image.shape[-1]] = image
    sizes = [[image.shape[-2], image.shape[-1]] for image in images]
    return canvases, torch.tensor(sizes, dtype=torch.long)


@dataclass
class Comparison:
    """Differences between a file's detections and the model's, over all images.

    Attributes:
        images: number of images.
        detections: number of the model's detections.
        box_px: largest difference of a coordinate between matched detections.
        score: largest difference of a score between matched detections.
        unmatched: detections without a partner of the same class within the tolerances.
        near_ties: images whose detections match only after a small change of pixel values.
        tensors: if something failed, the largest difference of each output in its own order.
    """

    images: int = 0
    detections: int = 0
    box_px: float = 0.0
    score: float = 0.0
    unmatched: int = 0
    near_ties: int = 0
    tensors: dict[str, float] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """True if every detection has a partner within the tolerances."""
        close = self.box_px <= BOX_TOLERANCE_PX and self.score <= SCORE_TOLERANCE
        return self.images > 0 and self.unmatched == 0 and close

    def record(self) -> dict[str, Any]:
        """Return the numbers and the result, for a JSON file."""
        return {**asdict(self), "good": self.good}

    def include(self, other: Comparison) -> None:
        """Add the differences of other images."""
        self.images += other.images
        self.detections += other.detections
        self.box_px = max(self.box_px, other.box_px)
        self.score = max(self.score, other.score)
        self.unmatched += other.unmatched
        self.near_ties += other.near_ties
        for name, difference in other.tensors.items():
            self.tensors[name] = max(self.tensors.get(name, 0.0), difference)

    def add(
        self,
        expected: Instances,
        found: Instances,
        *,
        nudged: Sequence[Instances] = (),
        limit: int | None = None,
    ) -> None:
        """Match an image's detections class by class, and record the largest differences.

        Args:
            expected: the model's detections.
            found: the file's detections.
            nudged: the model's detections in slightly changed copies of the image. A detection of
                the file may then match in any of them, and one of the model's need not be found
                unless it is in all of them.
            limit: maximum number of detections that the model returns; None if it returns all.
        """
        self.images += 1
        self.detections += len(expected)
        known_T, seen_T = np.zeros(len(found), dtype=bool), np.zeros(len(expected), dtype=bool)
        stable_T = np.ones(len(expected), dtype=bool)
        for run in (expected, *nudged):
            own, there = _partners(expected, run)
            rows, columns = _partners(run, found)
            new = ~known_T[columns]
            self._include_differences(run[rows[new]], found[columns[new]])
            known_T[columns] = True
            seen_T[own[np.isin(there, rows)]] = True
            stable_T &= np.isin(np.arange(len(expected)), own)
        missed = torch.from_numpy(stable_T & ~seen_T)
        alone = torch.cat([expected.scores[missed], found.scores[torch.from_numpy(~known_T)]])
        lengths = {len(run) for run in (expected, *nudged)}
        missing = len(alone) + int(len(found) not in lengths)
        if len(expected) == limit:
            # The list is cut here, so of detections with equal scores either may be in it.
            last = float(expected.scores.min()) + SCORE_TOLERANCE
            cut = int((alone <= last).sum())
            missing -= cut if cut <= _MOST_CUT * 2 * len(expected) else 0
        self.unmatched += missing
        if missing:
            self._compare_tensors(expected, found)

    def _include_differences(self, expected: Instances, found: Instances) -> None:
        """Add the differences of detections that are partners, in the same order."""
        if len(expected):
            boxes = expected.pred_boxes.tensor - found.pred_boxes.tensor
            self.box_px = max(self.box_px, float(boxes.abs().max()))
            self.score = max(self.score, float((expected.scores - found.scores).abs().max()))

    def _compare_tensors(self, expected: Instances, found: Instances) -> None:
        length = min(len(expected), len(found))
        pairs = {
            "boxes": (expected.pred_boxes.tensor, found.pred_boxes.tensor),
            "scores": (expected.scores, found.scores),
            "labels": (expected.pred_classes, found.pred_classes),
        }
        for name, (one, other) in pairs.items():
            difference = (one[:length].double() - other[:length].double()).abs()
            largest = float(difference.max()) if length else 0.0
            self.tensors[name] = max(self.tensors.get(name, 0.0), largest)


def _partners(expected: Instances, found: Instances) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of detections that match within the tolerances, one to one."""
    cost = _distance(expected, found)
    rows, columns = linear_sum_assignment(np.minimum(cost, 1e6))
    close = cost[rows, columns] <= 1.0
    return rows[close], columns[close]


def _distance(expected: Instances, found: Instances) -> np.ndarray:
    """Return the differences of all pairs in units of the tolerances; infinite between classes."""
    boxes = torch.cdist(
        expected.pred_boxes.tensor.double(), found.pred_boxes.tensor.double(), p=float("inf")
    )
    scores = (expected.scores[:, None].double() - found.scores[None].double()).abs()
    distance = torch.maximum(boxes / BOX_TOLERANCE_PX, scores / SCORE_TOLERANCE)
    other_class = expected.pred_classes[:, None] != found.pred_classes[None]
    return distance.masked_fill(other_class, float("inf")).numpy()


class ExportedModel(nn.Module):
    """An exported file with the interface of a detectron2 model in evaluation mode.

    Args:
        runner: runner from :func:`tokendetr.deploy.runtimes.open_exported`.
        canvas: height and width of the program's images.
        padding: pad smaller images to the canvas; otherwise resize all to it.
        batch: number of images that the program takes; more are processed in batches.
    """

    def __init__(self, runner: Runner, canvas: Size, *, padding: bool, batch: int = 1) -> None:
        super().__init__()
        self._run = runner
        self.canvas = canvas
        self.padding = padding
        self.batch = batch

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Return detectron2's ``{"instances": ...}`` of each record.

        Raises:
            InputError: an image is not [3, H, W], or has no pixel.
        """
        for position, record in enumerate(batched_inputs):
            check_image(record["image"], describe(record, position))
        results: list[dict[str, Instances]] = []
        for start in range(0, len(batched_inputs), self.batch):
            records = batched_inputs[start : start + self.batch]
            images = [self._fitted(record["image"].float()) for record in records]
            images += images[-1:] * (self.batch - len(images))
            inputs = padded_inputs(images, self.canvas)
            found = FixedDetections(*self._run(*inputs))
            for index, record in enumerate(records):
                size = (int(inputs[1][index, 0]), int(inputs[1][index, 1]))
                results.append({"instances": _instances(found, index, size, record)})
        return results

    def _fitted(self, image_3HW: Tensor) -> Tensor:
        """Resize an image to fit into the canvas, or to fill it if there is no padding."""
        height, width = image_3HW.shape[-2:]
        shrink = min(1.0, self.canvas[0] / height, self.canvas[1] / width)
        size = (max(1, int(height * shrink)), max(1, int(width * shrink)))
        if not self.padding:
            size = self.canvas
        if size == (height, width):
            return image_3HW
        resized = torch.nn.functional.interpolate(
            image_3HW[None], size=size, mode="bilinear", antialias=True
        )
        return resized[0]


def _instances(found: FixedDetections, index: int, size: Size, record: dict[str, Any]) -> Instances:
    """Return one image's detections in the pixels of its record."""
    height, width = record.get("height", size[0]), record.get("width", size[1])
    count = int(found.counts_B[index])
    result = Instances((height, width))
    boxes = Boxes(found.boxes_BT4[index, :count].clone())
    boxes.scale(scale_x=width / size[1], scale_y=height / size[0])
    result.pred_boxes = boxes
    result.scores = found.scores_BT[index, :count]
    result.pred_classes = found.labels_BT[index, :count]
    return result


def detect(model: nn.Module, images: Sequence[Tensor]) -> list[Instances]:
    """Return the model's detections, with each image in a batch of its own.

    Args:
        model: the detector in evaluation mode.
        images: float [3, H, W].
    """
    with torch.no_grad():
        return [model([{"image": image}])[0]["instances"] for image in images]


def compare(
    model: nn.Module,
    expected: Sequence[Instances],
    exported: ExportedModel,
    images: Sequence[Tensor],
) -> Comparison:
    """Compare an exported file with the model, image by image.

    A model that selects tokens or queries decides near ties by the last bits of their scores, in
    which runtimes differ. So a file's detections may also match those of the model on copies of
    the image with pixel values changed by less than :data:`NUDGE`: each detection in one of them,
    since several ties of an image are decided independently.

    Args:
        model: the detector in evaluation mode.
        expected: its detections, from :func:`detect`.
        exported: the exported file.
        images: float [3, H, W], none larger than the canvas.
    """
    comparison, limit = Comparison(), getattr(model, "select_box_nums_for_evaluation", None)
    found = exported([{"image": image} for image in images])
    for image, own, each in zip(images, expected, found, strict=True):
        result = Comparison()
        result.add(own, each["instances"], limit=limit)
        if not result.good:
            result = _nudged(model, image, own, each["instances"]) or result
        comparison.include(result)
    return comparison


def _nudged(
    model: nn.Module, image_3HW: Tensor, expected: Instances, found: Instances
) -> Comparison | None:
    """Return the comparison with the model on slightly changed images; None if it is not good."""
    generator = torch.Generator().manual_seed(0)
    limit = getattr(model, "select_box_nums_for_evaluation", None)
    nudged: list[Instances] = []
    for share in _NUDGES:
        noise_3HW = torch.rand(image_3HW.shape, generator=generator).sub(0.5).mul(2 * NUDGE * share)
        nudged += detect(model, [image_3HW + noise_3HW])
        result = Comparison(near_ties=1)
        result.add(expected, found, nudged=nudged, limit=limit)
        if result.good:
            return result
    return None
