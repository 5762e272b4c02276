"""Evaluators against pycocotools and a naive VOC reference; the evaluation loop."""
# Over 350 lines: one file per stand-in package.

import contextlib
import io
import json
import logging
import math
import sys
import uuid
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    inference_context,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, BoxMode, Instances, polygons_to_bitmask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.standalone.detectron2.coco_files import annotation, random_coco, write_coco

METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


@pytest.fixture
def name() -> str:
    return f"test_{uuid.uuid4().hex}"


@pytest.fixture
def coco_name(tmp_path, name):
    json_file, root = random_coco(tmp_path, num_images=10, with_images=False)
    register_coco_instances(name, {}, json_file, root)
    return name


def predictions_of(record: dict, *, seed: int | None = None, masks: bool = False) -> Instances:
    """Return the ground truth as predictions; with a seed moved, mislabeled and partly dropped."""
    size = (record["height"], record["width"])
    boxes, classes = [], []
    for anno in record["annotations"]:
        boxes.append(BoxMode.convert(anno["bbox"], anno["bbox_mode"], BoxMode.XYXY_ABS))
        classes.append(anno["category_id"])
    instances = Instances(size)
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor(classes, dtype=torch.int64)
    scores = torch.ones(len(boxes))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed + record["image_id"])
        tensor = tensor.repeat(3, 1)
        tensor = tensor + 4 * torch.randn(tensor.shape, generator=generator)
        tensor[:, 2:] = torch.maximum(tensor[:, 2:], tensor[:, :2] + 2)
        labels = labels.repeat(3)
        wrong = torch.rand(len(labels), generator=generator) < 0.2
        labels = torch.where(wrong, (labels + 1) % 3, labels)
        scores = torch.rand(len(labels), generator=generator)
    instances.pred_boxes = Boxes(tensor)
    instances.pred_classes = labels
    instances.scores = scores
    if masks:
        drawn = []
        for x0, y0, x1, y1 in tensor.tolist():
            polygon = np.array([x0, y0, x1, y0, x1, y1, x0, y1]).clip(0)
            drawn.append(torch.from_numpy(polygons_to_bitmask([polygon], *size)))
        instances.pred_masks = torch.stack(drawn) if drawn else torch.zeros(0, *size, dtype=bool)
    return instances


def evaluate(dataset: str, evaluator: DatasetEvaluator, **kwargs) -> dict:
    evaluator.reset()
    for record in DatasetCatalog.get(dataset):
        evaluator.process([record], [{"instances": predictions_of(record, **kwargs)}])
    return evaluator.evaluate()


def test_ground_truth_scores_100(coco_name, tmp_path):
    results = evaluate(
        coco_name, COCOEvaluator(coco_name, output_dir=str(tmp_path / "out")), masks=True
    )
    assert set(results) == {"bbox", "segm"}
    for task in results.values():
        for metric in ("AP", "AP50", "AP75", "APm", "AP-cat", "AP-dog", "AP-cow"):
            assert task[metric] == pytest.approx(100.0)


def pycocotools_stats(coco_name: str, results: list[dict], task: str, max_dets=None) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(MetadataCatalog.get(coco_name).json_file)
        if task == "segm":
            results = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
        run = COCOeval(truth, truth.loadRes(results), task)
        if max_dets:
            run.params.maxDets = max_dets
        run.evaluate()
        run.accumulate()
        if not max_dets:
            run.summarize()
    return run


def test_results_equal_pycocotools(coco_name, tmp_path):
    out = tmp_path / "out"
    results = evaluate(coco_name, COCOEvaluator(coco_name, output_dir=str(out)), seed=3, masks=True)
    written = json.loads((out / "coco_instances_results.json").read_text())
    assert {r["category_id"] for r in written} == {3, 7, 9}
    for task in ("bbox", "segm"):
        run = pycocotools_stats(coco_name, written, task)
        for i, metric in enumerate(METRICS):
            expected = run.stats[i] * 100 if run.stats[i] >= 0 else math.nan
            assert results[task][metric] == pytest.approx(expected, abs=0, nan_ok=True)
        # A per-class AP equals pycocotools' AP of that class alone.
        for category, label in ((3, "cat"), (7, "dog"), (9, "cow")):
            precision = run.eval["precision"][:, :, run.params.catIds.index(category), 0, -1]
            assert results[task][f"AP-{label}"] == pytest.approx(100 * precision.mean())
    assert 5 < results["bbox"]["AP"] < 95
    saved = torch.load(out / "instances_predictions.pth")
    assert len(saved) == 10 and saved[0]["image_id"] == 1


@pytest.mark.parametrize("limit", [2, 300])
def test_max_dets_limits_what_counts(coco_name, limit):
    evaluator = COCOEvaluator(coco_name, tasks=("bbox",), max_dets_per_image=limit)
    results = evaluate(coco_name, evaluator, seed=3)
    rows = []
    for prediction in evaluator._predictions:
        for row in prediction["instances"]:
            rows.append({**row, "category_id": (3, 7, 9)[row["category_id"]]})
    run = pycocotools_stats(coco_name, rows, "bbox", max_dets=[1, min(10, limit), limit])
    precision = run.eval["precision"][..., 0, -1]
    assert results["bbox"]["AP"] == pytest.approx(100 * precision[precision > -1].mean())
    if limit == 2:
        full = evaluate(coco_name, COCOEvaluator(coco_name, tasks="bbox"), seed=3)
        assert results["bbox"]["AP"] < full["bbox"]["AP"]


def test_crowd_regions_neither_help_nor_hurt(tmp_path, name):
    """A detection inside a crowd region is ignored; outside of it it is a mistake."""
    annotations = [
        annotation(1, 1, 3, [0, 0, 40, 40]),
        annotation(2, 1, 3, [60, 0, 60, 60], iscrowd=1),
    ]
    json_file, root = write_coco(tmp_path, sizes=[(100, 160)], annotations=annotations)
    register_coco_instances(name, {}, json_file, root)
    DatasetCatalog.get(name)

    def ap(extra_box) -> float:
        instances = Instances((100, 160))
        instances.pred_boxes = Boxes(torch.tensor([extra_box, [0.0, 0, 40, 40]]))
        instances.scores = torch.tensor([0.9, 0.8])
        instances.pred_classes = torch.tensor([0, 0])
        evaluator = COCOEvaluator(name)
        evaluator.process([{"image_id": 1}], [{"instances": instances}])
        return evaluator.evaluate()["bbox"]["AP"]

    assert ap([70.0, 10, 90, 30]) == pytest.approx(100.0)
    assert ap([5.0, 70, 25, 90]) == pytest.approx(50.0, abs=1.0)


def test_chosen_images_only(coco_name):
    evaluator = COCOEvaluator(coco_name)
    records = DatasetCatalog.get(coco_name)
    for record in records[:5]:
        evaluator.process([record], [{"instances": predictions_of(record)}])
    assert evaluator.evaluate(img_ids=[1, 2, 3])["bbox"]["AP"] == pytest.approx(100.0)
    assert evaluator.evaluate()["bbox"]["AP"] < 99


def test_empty_predictions(coco_name, caplog):
    evaluator = COCOEvaluator(coco_name)
    with caplog.at_level(logging.WARNING):
        assert evaluator.evaluate() == {}
    assert "Did not receive valid predictions" in caplog.text
    empty = Instances((10, 10))
    empty.pred_boxes = Boxes(torch.zeros(0, 4))
    empty.scores = torch.zeros(0)
    empty.pred_classes = torch.zeros(0, dtype=torch.int64)
    evaluator.process([{"image_id": 1}], [{"instances": empty}])
    results = evaluator.evaluate()
    assert list(results["bbox"]) == METRICS
    assert all(math.isnan(value) for value in results["bbox"].values())


def test_reset_forgets(coco_name):
    evaluator = COCOEvaluator(coco_name)
    first = evaluate(coco_name, evaluator, seed=3)
    assert evaluate(coco_name, evaluator, seed=3) == first


def test_class_out_of_range_is_an_error(coco_name):
    evaluator = COCOEvaluator(coco_name)
    record = DatasetCatalog.get(coco_name)[0]
    instances = predictions_of(record)
    instances.pred_classes = instances.pred_classes + 5
    evaluator.process([record], [{"instances": instances}])
    with pytest.raises(AssertionError, match=r"class=\d, but the dataset only has 3"):
        evaluator.evaluate()


def test_split_without_annotations_only_writes(tmp_path, name):
    json_file, root = write_coco(tmp_path, sizes=[(100, 160)], annotations=[])
    content = json.loads((tmp_path / "annotations.json").read_text())
    del content["annotations"]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    register_coco_instances(name, {}, json_file, root)
    DatasetCatalog.get(name)
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "out"))
    instances = Instances((100, 160))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2, 3, 5]]))
    instances.scores = torch.tensor([0.5])
    instances.pred_classes = torch.tensor([1])
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    assert evaluator.evaluate() == {}
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert written == [{"image_id": 1, "category_id": 7, "bbox": [1, 2, 2, 3], "score": 0.5}]


def test_a_dataset_of_another_format_is_converted(tmp_path, name):
    record = {
        "file_name": "a.jpg",
        "height": 100,
        "width": 160,
        "image_id": 4,
        "annotations": [
            {"bbox": [10, 10, 60, 50], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
        ],
    }
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).thing_classes = ["a", "b"]
    with pytest.raises(ValueError, match="output_dir"):
        COCOEvaluator(name)
    results = evaluate(name, COCOEvaluator(name, output_dir=str(tmp_path)))
    assert results["bbox"]["AP"] == pytest.approx(100.0)
    assert math.isnan(results["bbox"]["AP-a"]) and results["bbox"]["AP-b"] == pytest.approx(100)


def test_lvis_evaluator_asks_for_its_package(coco_name):
    try:
        import lvis  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install lvis"):
            LVISEvaluator(coco_name)
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


# ------------------------------------------------------------------------------------- VOC


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


# ------------------------------------------------------------------- loop, printing, checking


class Counter(DatasetEvaluator):
    def __init__(self, task: str = "count") -> None:
        self.task = task
        self.seen: list = []

    def reset(self) -> None:
        self.seen = []

    def process(self, inputs, outputs) -> None:
        self.seen.extend(zip(inputs, outputs, strict=True))

    def evaluate(self) -> dict:
        return {self.task: {"n": len(self.seen)}}


class Double(torch.nn.Module):
    def forward(self, inputs):
        assert not self.training and not torch.is_grad_enabled()
        return [2 * value for value in inputs]


def test_inference_runs_everything_once_in_eval_mode(caplog):
    model = Double().train()
    evaluator = Counter()
    calls = []
    callbacks = {key: (lambda k=key: calls.append(k)) for key in ("on_start", "on_end")}
    callbacks["before_inference"] = lambda: calls.append("b")
    with caplog.at_level(logging.INFO):
        results = inference_on_dataset(
            model, [[i] for i in range(12)], evaluator, callbacks=callbacks
        )
    assert results == {"count": {"n": 12}}
    assert evaluator.seen == [(i, 2 * i) for i in range(12)]
    assert model.training
    assert calls == ["on_start", *["b"] * 12, "on_end"]
    for text in (
        "Start inference on 12 batches",
        "Total inference time: ",
        "Total inference pure compute time: ",
        "s / iter per device, on 1 devices",
    ):
        assert text in caplog.text


@pytest.mark.parametrize("n", [1, 3, 7])
def test_few_batches(n):
    assert inference_on_dataset(Double(), [[0]] * n, None) == {}
    assert inference_on_dataset(Double(), [[0]] * n, [Counter("a"), Counter("b")]) == {
        "a": {"n": n},
        "b": {"n": n},
    }


def test_evaluators_must_not_share_a_task():
    with pytest.raises(AssertionError, match="same key count"):
        DatasetEvaluators([Counter(), Counter()]).evaluate()


def test_inference_context_restores_the_mode_after_an_error():
    model = Double().train()
    with pytest.raises(RuntimeError), inference_context(model):
        assert not model.training
        raise RuntimeError
    assert model.training


def test_copypaste_lines(caplog):
    results = {"bbox": {"AP": 41.23456, "AP50": 60.0, "AP-cat": 1.0}, "loss": 2.5}
    with caplog.at_level(logging.INFO):
        print_csv_format(results)
    assert [record.getMessage() for record in caplog.records] == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 41.2346,60.0000",
        "copypaste: loss=2.5",
    ]


def test_flatten_and_verify():
    results = {"bbox": {"AP": 41.0}, "x": 1}
    assert flatten_results_dict(results) == {"bbox/AP": 41.0, "x": 1}

    def cfg(*expected):
        return SimpleNamespace(TEST=SimpleNamespace(EXPECTED_RESULTS=list(expected)))

    assert verify_results(cfg(), results)
    assert verify_results(cfg(["bbox", "AP", 41.4, 0.5]), results)
    with pytest.raises(SystemExit):
        verify_results(cfg(["bbox", "AP", 42.0, 0.5]), results)
    with pytest.raises(SystemExit):
        verify_results(cfg(["bbox", "AP75", 42.0, 0.5]), results)
