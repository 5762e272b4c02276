"""Every implementation of COCO's evaluation gives pycocotools' digits, or all refuse alike."""

import contextlib
import importlib.util
import io
import json
import math
import random
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tokendetr.evaluation.fast_coco import FastCOCOEvaluator

__all__ = ["ODD_INPUTS", "compare_evaluators"]

BACKENDS = [
    name
    for name in ("hotcoco", "faster_coco_eval", "pycocotools")
    if importlib.util.find_spec(name) is not None
]


def _truth(rng: random.Random) -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{i}.png", "width": 300, "height": 200} for i in range(1, 7)]
    ids = sorted(rng.sample(range(1, 90), 3))
    annotations = []
    for image in images:
        for _ in range(rng.randrange(6)):
            w, h = math.exp(rng.uniform(1, 5)), math.exp(rng.uniform(1, 5))
            x, y = rng.uniform(0, 300 - w), rng.uniform(0, 200 - h)
            annotations.append(
                dict(id=len(annotations) + 1, image_id=image["id"], category_id=rng.choice(ids),
                     bbox=[x, y, w, h], area=w * h * rng.uniform(0.3, 1),
                     iscrowd=int(rng.random() < 0.15))
            )  # fmt: skip
    categories = [{"id": i, "name": f"c{i}"} for i in ids]
    return {"images": images, "annotations": annotations, "categories": categories}


def _predictions(data: dict[str, Any], rng: random.Random) -> list[tuple[Any, Instances]]:
    ids = sorted(c["id"] for c in data["categories"])
    found = []
    for image in data["images"]:
        boxes, classes = [], []
        for a in (a for a in data["annotations"] if a["image_id"] == image["id"]):
            x, y, w, h = (v + rng.gauss(0, 3) for v in a["bbox"])
            boxes.append([x, y, x + max(w, 0), y + max(h, 0)])
            classes.append(ids.index(a["category_id"]))
        for _ in range(rng.choice((0, 3, 30, 120))):
            x, y = rng.uniform(-10, 250), rng.uniform(-10, 150)
            boxes.append([x, y, x + rng.uniform(0, 100), y + rng.uniform(0, 100)])
            classes.append(rng.randrange(3))
        result = Instances((200, 300))
        result.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        result.scores = torch.tensor([round(rng.random(), 2) for _ in boxes])
        result.pred_classes = torch.tensor(classes, dtype=torch.long)
        found.append((image["id"], result))
    return found


def _reference(
    data: dict[str, Any], predictions: list[tuple[Any, Instances]], max_dets: list[int]
) -> dict[str, float]:
    """The metrics by pycocotools alone, on the file as it should have been written."""
    ids = sorted(c["id"] for c in data["categories"])
    rows = [
        dict(image_id=image_id, category_id=ids[c], bbox=[x0, y0, x1 - x0, y1 - y0], score=s)
        for image_id, found in predictions
        for c, (x0, y0, x1, y1), s in zip(
            found.pred_classes.tolist(), found.pred_boxes.tensor.tolist(), found.scores.tolist(),
            strict=True,
        )
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}, **data}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.params.maxDets = max_dets
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]

    def mean(values: np.ndarray) -> float:
        values = values[values > -1]
        return 100 * float(values.mean()) if values.size else float("nan")

    areas = dict(zip(("all", "small", "medium", "large"), range(4), strict=True))
    expected = {
        "AP": mean(precision[..., areas["all"], -1]),
        "AP50": mean(precision[0, ..., areas["all"], -1]),
        "AP75": mean(precision[5, ..., areas["all"], -1]),
        "APs": mean(precision[..., areas["small"], -1]),
        "APm": mean(precision[..., areas["medium"], -1]),
        "APl": mean(precision[..., areas["large"], -1]),
    }
    expected.update({f"AP-c{i}": mean(precision[:, :, k, 0, -1]) for k, i in enumerate(ids)})
    return expected


def _strip(field: str):
    def change(data: dict[str, Any]) -> None:
        for annotation in data["annotations"]:
            annotation.pop(field, None)

    return change


def _retype(kind: type, records: str, reference: str):
    def change(data: dict[str, Any]) -> None:
        for record in data[records]:
            record["id"] = kind(record["id"])
        for annotation in data["annotations"]:
            annotation[reference] = kind(annotation[reference])

    return change


def _annotation_ids(change_id: Any):
    def change(data: dict[str, Any]) -> None:
        for annotation in data["annotations"]:
            annotation["id"] = change_id(annotation["id"])

    return change


# What odd files must give: the digits of the file as it should be, or a refusal of all alike.
ODD_INPUTS: dict[str, tuple[Any, str]] = {
    "plain": (lambda data: None, ""),
    "no area": (_strip("area"), "area"),
    "no iscrowd": (_strip("iscrowd"), "iscrowd"),
    "text image ids": (_retype(str, "images", "image_id"), ""),
    "float image ids": (_retype(float, "images", "image_id"), ""),
    "float category ids": (_retype(float, "categories", "category_id"), ""),
    "text annotation ids": (_annotation_ids(lambda i: f"a{i}"), ""),
    "large annotation ids": (_annotation_ids(lambda i: i + 2**40), ""),
    "negative annotation ids": (_annotation_ids(lambda i: -i), ""),
    "annotation ids from 0": (_annotation_ids(lambda i: i - 1), "refused"),
    "repeated annotation ids": (_annotation_ids(lambda i: 1), "refused"),
    "no info": (lambda data: data.pop("info", None), ""),
}
_LIMITS: tuple[Any, ...] = (None, 1, 5, 10, 50, 100, 300, (1, 10, 100), (100, 10, 1), (5, 5, 20))


def compare_evaluators(seed: int, folder: Path) -> int:
    """Evaluate one set of predictions on every odd form of its ground truth; returns their number.

    Raises:
        AssertionError: a digit differs from pycocotools', or not all refuse with the same words.
    """
    rng = random.Random(seed)
    data = _truth(rng)
    while len(data["annotations"]) < 2:
        data = _truth(rng)
    predictions = _predictions(data, rng)
    limit = rng.choice(_LIMITS)
    expected_limit = {None: [1, 10, 100]}.get(limit) or (
        [1, min(10, limit), limit] if isinstance(limit, int) else sorted(limit)
    )
    for kind, (change, effect) in ODD_INPUTS.items():
        odd = json.loads(json.dumps(data))
        change(odd)
        path = folder / f"{kind.replace(' ', '_')}.json"
        path.write_text(json.dumps(odd))
        right = json.loads(json.dumps(data))
        for annotation in right["annotations"]:
            if effect == "area":
                annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
            if effect == "iscrowd":
                annotation["iscrowd"] = 0
        expected = None if effect == "refused" else _reference(right, predictions, expected_limit)
        _compare(kind, path, odd, predictions, limit, expected)
    return len(ODD_INPUTS)


def _compare(
    kind: str, path: Path, odd: dict[str, Any], predictions: Any, limit: Any, expected: Any
) -> None:
    name = f"evaluators_{uuid.uuid4().hex}"
    register_coco_instances(name, {}, str(path), "")
    metadata = MetadataCatalog.get(name)
    categories = sorted(odd["categories"], key=lambda c: c["id"])
    metadata.thing_classes = [c["name"] for c in categories]
    metadata.thing_dataset_id_to_contiguous_id = {c["id"]: i for i, c in enumerate(categories)}
    ids = [image["id"] for image in odd["images"]]
    refusals = set()
    try:
        for backend in (None, *BACKENDS):
            try:
                evaluator: Any = (
                    COCOEvaluator(name, max_dets_per_image=limit)
                    if backend is None
                    else FastCOCOEvaluator(name, max_dets_per_image=limit, backend=backend)
                )
            except ValueError as error:
                refusals.add(str(error).splitlines()[-1 if kind.startswith("annotation") else 1])
                assert expected is None, f"{kind}, {backend}: {error}"
                continue
            assert expected is not None, f"{kind}, {backend}: not refused"
            evaluator.reset()
            for image_id, (_, found) in zip(ids, predictions, strict=True):
                plain = int(image_id) if isinstance(image_id, float) else image_id
                evaluator.process([{"image_id": plain}], [{"instances": found}])
            results = evaluator.evaluate()["bbox"]
            assert list(results) == list(expected), f"{kind}, {backend}: {list(results)}"
            for key, value in expected.items():
                same = results[key] == value or (math.isnan(results[key]) and math.isnan(value))
                assert same or abs(results[key] - value) < 1e-9, (
                    f"{kind}, {backend}, max_dets={limit}: {key} is {results[key]}, not {value}"
                )
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert len(refusals) <= 1, f"{kind}: refused with different words: {refusals}"
