"""Refuse ground truth and predictions on which COCO's or LVIS's evaluation fails or misleads.

Validation and the evaluators of ``tokendetr`` and, through a symbolic link, those of the stand-in
for detectron2 share these checks; as :mod:`tokendetr.io.annotations` does, they need only the
standard library.
"""

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

from ._annotation_values import AnnotationError, image_name, shown

__all__ = [
    "check_classes",
    "check_results",
    "federated_faults",
    "max_detections",
    "require_evaluable",
]

_MAX_DETECTIONS = 100_000


def require_evaluable(data: Mapping[str, Any], label: str, tasks: Sequence[str] = ()) -> None:
    """Refuse ground truth on which COCO's evaluation would fail or give wrong numbers.

    Args:
        data: the ``data`` of :func:`tokendetr.io.annotations.normalize`.
        label: the file, for messages.
        tasks: ``segm`` requires a mask in every annotation.

    Raises:
        AnnotationError: the message gives the reason.
    """
    for annotation in data.get("annotations", []):
        if annotation["id"] == 0:
            raise AnnotationError(
                f"{label}: annotation id 0: COCO's evaluation counts it as missed; number from 1"
            )
        if "segm" in tasks and "segmentation" not in annotation:
            raise AnnotationError(
                f"{label}: annotation id {annotation['id']} of image id {annotation['image_id']} "
                "has no segmentation that can be read: masks cannot be evaluated"
            )


def check_classes(rows: Sequence[Mapping[str, Any]], count: int) -> None:
    """Refuse predictions of classes that a data set does not have.

    Args:
        rows: in COCO's result format, but with the model's class indices, from 0.
        count: number of categories.

    Raises:
        ValueError: a class is out of range; the message names image and class.
    """
    for row in rows:
        if not 0 <= row["category_id"] < count:
            raise ValueError(
                f"a prediction of image {shown(row['image_id'])} has class {row['category_id']}, "
                f"but the data set has only {count} categories"
            )


def check_results(
    rows: Sequence[Mapping[str, Any]], image_ids: Container[Any], tasks: Sequence[str] = ()
) -> None:
    """Refuse predictions that implementations of COCO's evaluation treat differently.

    Args:
        rows: in COCO's result format.
        image_ids: ids of the ground truth's images.
        tasks: ``segm`` requires a mask in every prediction, ``keypoints`` its keypoints.

    Raises:
        ValueError: a prediction is for an unknown image, lacks what a task needs, or has a box or
            score that is not finite.
    """
    for row in rows:
        for task, part in (("segm", "segmentation"), ("keypoints", "keypoints")):
            if task in tasks and part not in row:
                raise ValueError(
                    f"a prediction of image {shown(row['image_id'])} has no {part}, which "
                    f"tasks={task} evaluates: ask only for what the model predicts"
                )
        if row["image_id"] not in image_ids:
            raise ValueError(
                f"a prediction is for image {shown(row['image_id'])}, which the annotations do "
                "not have: loader and evaluator use different data sets"
            )
        if not all(map(math.isfinite, (*row.get("bbox", ()), row["score"]))):
            raise ValueError(
                f"a prediction for image {shown(row['image_id'])} is not finite: box "
                f"{shown(row.get('bbox'))}, score {row['score']}"
            )


def max_detections(given: int | Sequence[int] | None) -> list[int]:
    """Return the three numbers of ``maxDets``, ascending as pycocotools sorts them.

    Args:
        given: the maximum number of detections per image, or all three numbers; None for
            (1, 10, 100).

    Raises:
        ValueError: neither one nor three positive numbers up to 100,000.
    """
    if given is None:
        return [1, 10, 100]
    numbers: Any = [1, min(10, given), given] if isinstance(given, int) else given
    is_right = isinstance(numbers, Sequence) and len(numbers) == 3
    if not is_right or not all(isinstance(n, int) and 0 < n <= _MAX_DETECTIONS for n in numbers):
        raise ValueError(
            f"max_dets_per_image={shown(given)}: give one positive number, or three as maxDets "
            f"(at most {_MAX_DETECTIONS:,})"
        )
    return sorted(numbers)


def federated_faults(data: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each record whose fields LVIS's evaluation cannot use.

    Args:
        data: the ``data`` of :func:`tokendetr.io.annotations.normalize`.
    """
    known = {category["id"] for category in data["categories"]}
    faults = []
    for image in data["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = image.get(key)
            if not isinstance(ids, list):
                problem = f"there is no list {key!r}, which LVIS's evaluation needs"
                faults.append(f"{image_name(image)}: {problem}")
            # The evaluation would look for such an id and never find it.
            elif strangers := [n for n in ids if not isinstance(n, int | str) or n not in known]:
                problem = f"{key} has {shown(strangers[0])}, which is not a category's id"
                faults.append(f"{image_name(image)}: {problem}")
    return faults + [
        f"category id {category['id']} ({category['name']}): frequency is "
        f"{shown(category.get('frequency'))}, not 'r', 'c' or 'f'"
        for category in data["categories"]
        if category.get("frequency") not in ("r", "c", "f")
    ]
