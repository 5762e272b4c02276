"""Bootstrap COCO's AP over images, to estimate its variation with the choice of test images.

Detections are matched once; a replicate counts every image as often as it was drawn. Replicate r
draws the same images for every detector, so that the differences of two detectors' replicates are
paired (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993).

Shapes: R replicate, I image of the test set.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ["ImageMatches", "draw_images", "match_images"]

_MAX_DETECTIONS = 100  # per image and category, as in COCO's AP
_RECALLS = np.linspace(0.0, 1.0, 101)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Category:
    """Detections of a category by descending score, and its ground truth.

    Attributes:
        image_D: row of the image that a detection belongs to.
        matched_TD: whether it is a true positive, by IoU threshold.
        counted_TD: whether it counts, that is, matches neither a crowd nor an object of other size.
        truths_I: number of boxes to be found, by image.
    """

    image_D: npt.NDArray[np.int64]
    matched_TD: npt.NDArray[np.bool_]
    counted_TD: npt.NDArray[np.bool_]
    truths_I: npt.NDArray[np.int64]

    def average_precision(self, times_I: npt.NDArray[np.int64]) -> float | None:
        """Return the mean precision over IoU thresholds and recalls, None without ground truth.

        Args:
            times_I: how often each image counts.
        """
        total = int(times_I @ self.truths_I)
        if not total:
            return None
        weight_D = times_I[self.image_D]
        true_TD = np.cumsum(weight_D * (self.matched_TD & self.counted_TD), axis=1, dtype=float)
        false_TD = np.cumsum(weight_D * (~self.matched_TD & self.counted_TD), axis=1, dtype=float)
        recall_TD = true_TD / total
        precision_TD = true_TD / (true_TD + false_TD + np.spacing(1))
        # The precision at a recall is the maximum at that recall or a higher one.
        envelope_TD = np.maximum.accumulate(precision_TD[:, ::-1], axis=1)[:, ::-1]
        sums = 0.0
        for recall_D, precision_D in zip(recall_TD, envelope_TD, strict=True):
            place = np.searchsorted(recall_D, _RECALLS, side="left")
            sums += float(precision_D[place[place < len(precision_D)]].sum())
        return sums / (len(_RECALLS) * len(recall_TD))


@dataclass(frozen=True)
class ImageMatches:
    """A detector's matched detections on a test set; made by :func:`match_images`.

    Attributes:
        num_images: number of images of the test set.
        categories: the detections of each category.
    """

    num_images: int
    categories: Sequence[_Category]

    def average_precision(self, times_I: npt.NDArray[np.int64] | None = None) -> float:
        """Return AP (0 to 100) over IoU .50:.95, counting image ``i`` ``times_I[i]`` times.

        Without ``times_I`` every image counts once, and the result equals pycocotools'. It is NaN
        if no counted image has ground truth.
        """
        times_I = np.ones(self.num_images, np.int64) if times_I is None else times_I
        found = [category.average_precision(times_I) for category in self.categories]
        known = [value for value in found if value is not None]
        return 100.0 * sum(known) / len(known) if known else float("nan")

    def replicates(self, times_RI: npt.NDArray[np.int64]) -> Floats:
        """Return AP of each replicate; ``times_RI`` is :func:`draw_images`'s."""
        return np.array([self.average_precision(times_I) for times_I in times_RI])


def draw_images(num_images: int, replicates: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Draw images with replacement.

    Returns:
        ``[R, I]``: how often image i is drawn in replicate r. Equal arguments give equal draws.
    """
    generator = np.random.default_rng(seed)
    uniform = np.full(num_images, 1.0 / num_images)
    return generator.multinomial(num_images, uniform, size=replicates).astype(np.int64)


def match_images(
    truth: dict[str, Any],
    detections: Sequence[Mapping[str, Any]],
    area: str = "all",
) -> ImageMatches:
    """Match detections with ground truth as COCO's evaluation does.

    Args:
        truth: a COCO document with integer ids and areas.
        detections: boxes in COCO's result format.
        area: ``all``, ``small``, ``medium`` or ``large``.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth_api = COCO()
        truth_api.dataset = truth
        truth_api.createIndex()
        # pycocotools adds fields to the records it is given.
        results = truth_api.loadRes([dict(row) for row in detections]) if detections else COCO()
        evaluation = COCOeval(truth_api, results, "bbox")
        params = evaluation.params
        chosen = params.areaRngLbl.index(area)
        params.areaRng, params.areaRngLbl = [params.areaRng[chosen]], [area]
        params.maxDets = [_MAX_DETECTIONS]
        if not detections:
            params.imgIds = sorted(image["id"] for image in truth["images"])
        evaluation.evaluate()
    num_images = len(params.imgIds)
    by_category = [
        evaluation.evalImgs[start : start + num_images]
        for start in range(0, len(evaluation.evalImgs), num_images)
    ]
    thresholds = len(params.iouThrs)
    return ImageMatches(num_images, [_category(images, thresholds) for images in by_category])


def _category(images: Sequence[dict[str, Any] | None], thresholds: int) -> _Category:
    scores, rows, matched, ignored = [], [], [], []
    truths_I = np.zeros(len(images), np.int64)
    for row, image in enumerate(images):
        if image is None:
            continue
        truths_I[row] = int(np.count_nonzero(np.asarray(image["gtIgnore"]) == 0))
        scores.append(np.asarray(image["dtScores"], float))
        rows.append(np.full(len(image["dtScores"]), row, np.int64))
        matched.append(np.asarray(image["dtMatches"]).reshape(thresholds, -1) != 0)
        ignored.append(np.asarray(image["dtIgnore"]).reshape(thresholds, -1) != 0)
    if not scores:
        empty = np.zeros((thresholds, 0), bool)
        return _Category(np.zeros(0, np.int64), empty, empty, truths_I)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")  # stable, like COCO's evaluation
    return _Category(
        image_D=np.concatenate(rows)[order],
        matched_TD=np.concatenate(matched, axis=1)[:, order],
        counted_TD=~np.concatenate(ignored, axis=1)[:, order],
        truths_I=truths_I,
    )
