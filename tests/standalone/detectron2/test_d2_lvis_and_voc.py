"""LVIS evaluation, and PASCAL VOC evaluation against a naive reference."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation import (
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
)
from detectron2.structures import Boxes, BoxMode, Instances

from tests.standalone.detectron2.evaluation_cases import predictions_of


def test_lvis_evaluator_asks_for_its_package(name):
    try:
        import lvis  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install lvis"):
            LVISEvaluator(name)
    else:
        pytest.skip("lvis is installed: nothing to ask for")


def test_lvis_results_are_handed_over_in_lvis_form(tmp_path, name, monkeypatch):
    """A stand-in for the package records its arguments and returns fixed numbers."""
    given: dict = {}

    class Api:
        def __init__(self, json_file):
            given["json_file"] = json_file

        def get_ann_ids(self):
            return [1]

    def results(api, rows, max_dets):
        given[len(given)] = (rows, max_dets)
        return rows

    class Eval:
        def __init__(self, api, rows, task):
            self.params = SimpleNamespace()

        def run(self):
            given["limit"] = self.params.max_dets

        def get_results(self):
            names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
            return dict.fromkeys(names, 0.5)

    fake = SimpleNamespace(LVIS=Api, LVISResults=results, LVISEval=Eval)
    monkeypatch.setitem(sys.modules, "lvis", fake)
    path = tmp_path / "lvis.json"
    image = {"id": 4, "width": 40, "height": 40, "file_name": "4.jpg"}
    image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    category = {"id": 7, "name": "cat", "frequency": "r"}
    truth = {"id": 1, "image_id": 4, "category_id": 7, "bbox": [1, 2, 29, 18]}
    content = {"images": [image], "categories": [category], "annotations": [truth]}
    path.write_text(json.dumps(content))
    MetadataCatalog.get(name).set(json_file=str(path), evaluator_type="lvis")
    evaluator = LVISEvaluator(name, output_dir=str(tmp_path))
    record = {
        "image_id": 4,
        "height": 40,
        "width": 40,
        "annotations": [{"bbox": [1, 2, 30, 20], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 6}],
    }
    evaluator.process([record], [{"instances": predictions_of(record, masks=True)}])
    out = evaluator.evaluate()
    assert out["bbox"]["APr"] == 50.0 and out["segm"]["AP"] == 50.0
    (boxes, limit), (masks, _) = given[1], given[3]
    assert limit == given["limit"] == 300
    assert boxes[0]["category_id"] == 7 and boxes[0]["bbox"] == [1, 2, 29, 18]
    assert "bbox" not in masks[0] and masks[0]["segmentation"]["size"] == [40, 40]
    assert (tmp_path / "lvis_instances_results.json").exists()


def naive_voc_ap(truth, detections, iou_threshold: float, eleven_points: bool) -> float:
    """Compute VOC's AP in plain Python; truth: image -> [(1-based inclusive box, difficult)]."""

    def iou(a, b):
        w = min(a[2], b[2]) - max(a[0], b[0]) + 1
        h = min(a[3], b[3]) - max(a[1], b[1]) + 1
        if w <= 0 or h <= 0:
            return 0.0
        area = lambda r: (r[2] - r[0] + 1) * (r[3] - r[1] + 1)  # noqa: E731
        return w * h / (area(a) + area(b) - w * h)

    num = sum(not difficult for objects in truth.values() for _, difficult in objects)
    used, points, right, wrong = set(), [], 0, 0
    for image, _, box in sorted(detections, key=lambda d: -d[1]):
        candidates = [(iou(box, b), -i) for i, (b, _) in enumerate(truth.get(image, []))]
        overlap, negative = max(candidates, default=(0.0, 0))
        key = (image, -negative)
        if overlap > iou_threshold:
            if not truth[image][-negative][1]:
                if key in used:
                    wrong += 1
                else:
                    used.add(key)
                    right += 1
        else:
            wrong += 1
        points.append((right / num, right / max(right + wrong, 1e-16)))
    if eleven_points:
        return (
            sum(max((p for r, p in points if r >= t), default=0.0) for t in np.arange(0, 1.1, 0.1))
            / 11
        )
    ap, last = 0.0, 0.0
    for i, (recall, _) in enumerate(points):
        if recall > last:
            ap += (recall - last) * max(p for _, p in points[i:])
            last = recall
    return ap


def random_voc(root, rng, classes):
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    truth = {c: {} for c in classes}
    ids = [f"{i:06d}" for i in range(8)]
    for image_id in ids:
        objects = []
        for _ in range(rng.integers(0, 5)):
            label = str(rng.choice(classes))
            x, y = rng.integers(1, 60, 2)
            w, h = rng.integers(8, 40, 2)
            difficult = bool(rng.random() < 0.25)
            box = [int(x), int(y), int(x + w), int(y + h)]
            truth[label].setdefault(image_id, []).append((box, difficult))
            sides = "".join(
                f"<{s}>{v}</{s}>"
                for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            )
            objects.append(
                f"<object><name>{label}</name><difficult>{int(difficult)}</difficult>"
                f"<bndbox>{sides}</bndbox></object>"
            )
        size = "<size><width>120</width><height>110</height><depth>3</depth></size>"
        text = f"<annotation>{size}{''.join(objects)}</annotation>"
        (root / "Annotations" / f"{image_id}.xml").write_text(text)
    (root / "ImageSets" / "Main" / "test.txt").write_text("\n".join(ids) + "\n")
    return ids, truth


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", range(4))
def test_voc_ap_equals_a_naive_reference(tmp_path, name, year, seed):
    rng = np.random.default_rng(seed)
    classes = ["cat", "dog"]
    ids, truth = random_voc(tmp_path, rng, classes)
    register_pascal_voc(name, str(tmp_path), "test", year, class_names=classes)
    evaluator = PascalVOCDetectionEvaluator(name)
    detections: dict[str, list] = {c: [] for c in classes}
    for image_id in ids:
        boxes, labels, scores = [], [], []
        for c, label in enumerate(classes):
            for box, _ in truth[label].get(image_id, []):
                for _ in range(rng.integers(0, 3)):
                    moved = np.array(box) + rng.integers(-4, 5, 4)
                    boxes.append([moved[0] - 1, moved[1] - 1, moved[2], moved[3]])
                    labels.append(c if rng.random() < 0.8 else 1 - c)
                    scores.append(float(np.float32(rng.random())))
                    detections[classes[labels[-1]]].append((image_id, scores[-1], moved.tolist()))
        instances = Instances((110, 120))
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.pred_classes = torch.tensor(labels, dtype=torch.int64)
        instances.scores = torch.tensor(scores)
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    results = evaluator.evaluate()["bbox"]
    aps = {
        t: np.mean([naive_voc_ap(truth[c], detections[c], t / 100, year == 2007) for c in classes])
        for t in range(50, 100, 5)
    }
    assert results["AP50"] == pytest.approx(100 * aps[50], abs=1e-9)
    assert results["AP75"] == pytest.approx(100 * aps[75], abs=1e-9)
    assert results["AP"] == pytest.approx(100 * np.mean(list(aps.values())), abs=1e-9)
    assert 0 < results["AP50"] < 100
