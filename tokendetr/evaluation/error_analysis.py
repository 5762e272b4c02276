"""Analyze a detector's results: curves, thresholds, confusion matrix, error types, calibration.

Shapes: V class.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendetr.data.coco_check import read_coco
from tokendetr.errors import DatasetError
from tokendetr.evaluation.matched_results import MatchedResults
from tokendetr.io.annotation_checks import check_results
from tokendetr.io.results import RESULT_KEYS, read_results

__all__ = ["Analysis", "Comparison", "analyze_results", "compare_results"]

BACKGROUND = "background"
ERRORS = {
    "Cls": "classification",
    "Loc": "localization",
    "Both": "classification and localization",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}
"""hotcoco's name of an error type of TIDE (arXiv 2008.08115) -> its name here."""

CONFIDENCE = 0.95
"""Confidence level of the intervals of a comparison."""

_CURVE_POINTS = 200


@dataclass(frozen=True)
class Analysis:
    """Analysis of a detector's results on a data set, in plain values; AP and AR are in percent.

    Attributes:
        num_images: images of the data set.
        num_boxes: boxes of the data set, without crowds.
        num_detections: detections in the results.
        num_images_without_detections: images that the results have no detection of. An evaluation
            of a part of the images (``--images``) leaves such, and their boxes count as missed.
        metrics: ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, ``AR100``, and ``F1`` at IoU
            0.5.
        classes: a row per class: name, boxes, AP, AP50, AP75, APs, APm, APl, AR100, the score
            ``threshold`` that maximizes F1, ``precision``, ``recall`` and ``f1`` at it, in [0, 1],
            and ``calibration_error``.
        curves: for each class name, ``score``, ``precision``, ``recall`` and ``f1`` at IoU 0.5, by
            descending score, at most 200 points.
        confusion: counts [V + 1, V + 1] at the classes' thresholds; rows are ground truth, columns
            are detections, the last of each is the background.
        errors: for each error type, ``count`` at the classes' thresholds, and ``ap50``, the AP50
            that would be gained without such errors.
        calibration: ``error`` (expected calibration error, in [0, 1]) and ``bins`` of scores:
            ``lower``, ``upper``, ``confidence``, ``precision``, ``count``.
        images: a row per image at the classes' thresholds, the worst first: ``id``, ``file_name``,
            ``width`` and ``height`` (None if the data set has no sizes), ``found``, ``wrong``,
            ``missed``, ``f1``.
        boxes: for each image id, ``truth`` and ``detections`` at the classes' thresholds, with
            ``bbox``, ``name``, ``right`` (found, or a true positive) and, of detections, ``score``.
    """

    num_images: int
    num_boxes: int
    num_detections: int
    num_images_without_detections: int
    metrics: dict[str, float]
    classes: list[dict[str, Any]]
    curves: dict[str, dict[str, list[float]]]
    confusion: list[list[int]]
    errors: dict[str, dict[str, float]]
    calibration: dict[str, Any]
    images: list[dict[str, Any]] = field(repr=False)
    boxes: dict[Any, dict[str, list[dict[str, Any]]]] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the boxes, in JSON's types."""
        return {name: value for name, value in vars(self).items() if name != "boxes"}

    def thresholds(self) -> dict[Any, float]:
        """Return the score threshold of each category id."""
        return {row["id"]: row["threshold"] for row in self.classes}


@dataclass(frozen=True)
class Comparison:
    """Comparison of two results on one data set, with a paired bootstrap over images.

    Attributes:
        metrics: for each metric, ``first``, ``second``, ``difference``, the bounds ``lower`` and
            ``upper`` of the difference's interval, in percent, and ``better``: the share of
            resamples in which the second is above the first.
        classes: for each class name, AP: ``first``, ``second``, ``difference``.
        resamples: number of bootstrap resamples.
        confidence: confidence level of the intervals.
    """

    metrics: dict[str, dict[str, float]]
    classes: dict[str, dict[str, float]]
    resamples: int
    confidence: float


def _results_on(path: str | Path, annotations: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read a file of COCO results and check it against the annotations.

    Args:
        path: the JSON file.
        annotations: annotations read by :func:`tokendetr.data.coco_check.read_coco`.

    Raises:
        FileNotFoundError: no such file.
        DatasetError: the file is not a list of results, or a record is of an unknown image or
            category; the message names file and record.
    """
    rows = read_results(path)
    categories = {category["id"] for category in annotations["categories"]}
    for number, row in enumerate(rows):
        if row["category_id"] not in categories:
            raise DatasetError(
                f"{path}: record {number} is of category {row['category_id']!r}, which the "
                "annotations do not have"
            )
        if not 0 <= row["score"] <= 1:  # calibration compares scores with precision
            raise DatasetError(
                f"{path}: record {number} has the score {row['score']}: an analysis needs scores "
                "between 0 and 1, not logits"
            )
    try:
        check_results(rows, {image["id"] for image in annotations["images"]})
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from error
    # Other fields, such as masks of another program, may be anything.
    return [{key: row[key] for key in RESULT_KEYS} for row in rows]


def _labeled(annotations: str | Path) -> dict[str, Any]:
    """Read annotations, and refuse a file of images alone, as of a test set without labels."""
    data = read_coco(str(annotations))
    if "annotations" not in data:
        raise DatasetError(f"{annotations} has no 'annotations' to compare results with")
    return data


def analyze_results(annotations: str | Path, results: str | Path) -> Analysis:
    """Analyze COCO results of boxes.

    Args:
        annotations: a COCO JSON with boxes.
        results: a JSON list of ``image_id``, ``category_id``, ``bbox`` and ``score``.

    Raises:
        FileNotFoundError, DatasetError: a file cannot be used; the message names it.
        ConfigError: hotcoco is not installed.
    """
    data = _labeled(annotations)
    return _analysis(data, _results_on(results, data))


def compare_results(
    annotations: str | Path,
    first: str | Path,
    second: str | Path,
    *,
    resamples: int = 1000,
) -> Comparison:
    """Compare two results on one data set by a paired bootstrap over its images.

    Args:
        annotations: a COCO JSON.
        first: the baseline's results.
        second: the results whose gain is measured.
        resamples: number of bootstrap resamples.

    Raises:
        FileNotFoundError, DatasetError, ConfigError: as for :func:`analyze_results`.
        ValueError: fewer than one resample.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    data = _labeled(annotations)
    one, two = (MatchedResults(data, _results_on(path, data)) for path in (first, second))
    found = one.compare(two, resamples, CONFIDENCE)
    metrics = {
        name: {
            "first": _percent(found["metrics_a"][name]),
            "second": _percent(found["metrics_b"][name]),
            "difference": 100 * found["deltas"][name],
            "lower": 100 * found["ci"][name]["lower"],
            "upper": 100 * found["ci"][name]["upper"],
            "better": found["ci"][name]["prob_positive"],
        }
        for name in found["metric_keys"]
    }
    classes = {
        row["cat_name"]: {
            "first": _percent(row["ap_a"]),
            "second": _percent(row["ap_b"]),
            "difference": 100 * row["delta"],
        }
        for row in found["per_category"]
    }
    return Comparison(metrics, classes, resamples, CONFIDENCE)


def _analysis(data: dict[str, Any], rows: list[dict[str, Any]]) -> Analysis:
    """Analyze results; where a threshold is needed, it is the one of the class's best F1."""
    matched = MatchedResults(data, rows)
    names = {category["id"]: category["name"] for category in matched.categories}
    curves = {number: matched.curve(number) for number in names}
    best = {number: _best(curve) for number, curve in curves.items()}
    thresholds = {number: values["threshold"] for number, values in best.items()}
    kept = [row for row in matched.rows if row["score"] >= thresholds[row["category_id"]]]
    shown = MatchedResults(data, [_plain(row) for row in kept])
    calibration = matched.coco_eval.calibration(n_bins=10, iou_threshold=0.5)
    return Analysis(
        num_images=len(data["images"]),
        num_boxes=matched.boxes_by_class.total(),
        num_detections=len(matched.rows),
        num_images_without_detections=len(data["images"])
        - len({row["image_id"] for row in matched.rows}),
        metrics=matched.metrics(),
        classes=[
            {
                **row,
                **best[row["id"]],
                "calibration_error": float(calibration["per_category"].get(row["name"], 0.0)),
            }
            for row in matched.classes()
        ],
        curves={names[number]: _thinned(curve) for number, curve in curves.items()},
        confusion=shown.coco_eval.confusion_matrix(iou_thr=0.5)["matrix"].astype(int).tolist(),
        errors=_errors(matched.coco_eval.tide_errors(), shown.coco_eval.tide_errors()),
        calibration=_calibration(calibration),
        images=list(shown.worst_images()),
        boxes=shown.boxes(names),
    )


def _percent(share: float) -> float:
    """Return a share in percent; -1 stays -1, COCO's value for no boxes to measure on."""
    return share if share == -1 else 100 * share


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("image_id", "category_id", "bbox", "score")}


def _best(curve: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Return the threshold of the best F1 and the values there; 1 if nothing is found."""
    if not len(curve["f1"]) or not curve["f1"].max():
        return {"threshold": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    index = int(curve["f1"].argmax())
    values = {name: float(curve[name][index]) for name in ("precision", "recall", "f1")}
    return {"threshold": float(curve["score"][index]), **values}


def _thinned(curve: Mapping[str, NDArray[np.float64]]) -> dict[str, list[float]]:
    count = len(curve["score"])
    index = np.unique(np.linspace(0, count - 1, min(count, _CURVE_POINTS)).round().astype(int))
    return {name: [round(float(v), 5) for v in values[index]] for name, values in curve.items()}


def _errors(everything: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "count": int(shown["counts"].get(key, 0)),
            "ap50": 100 * float(everything["delta_ap"][key]),
        }
        for key, name in ERRORS.items()
    }


def _calibration(found: Mapping[str, Any]) -> dict[str, Any]:
    bins = [
        {
            "lower": each["bin_lower"],
            "upper": each["bin_upper"],
            "confidence": each["avg_confidence"],
            "precision": each["avg_accuracy"],
            "count": each["count"],
        }
        for each in found["bins"]
    ]
    return {"error": float(found["ece"]), "bins": bins}
