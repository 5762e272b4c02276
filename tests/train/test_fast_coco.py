"""FastCOCOEvaluator gives pycocotools' digits."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from tokendetr.evaluation import fast_coco
from tokendetr.evaluation.fast_coco import FastCOCOEvaluator, load_backend

BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(name) is None, reason=f"{name} is not installed"
        ),
    )
    for name in ("hotcoco", "faster_coco_eval", "pycocotools")
]
CATEGORY_IDS = [2, 5, 9, 11]


@pytest.fixture
def dataset(tmp_path, request):
    """Make random ground truth with crowds, an empty image, and a category that never occurs."""
    name = "fast_coco_test"

    def make(seed):
        rng = np.random.default_rng(seed)
        images = [
            {"id": i, "file_name": f"{i}.jpg", "width": 300, "height": 200} for i in range(1, 9)
        ]
        annotations = []
        for image in images[1:]:
            for _ in range(int(rng.integers(1, 7))):
                w, h = np.exp(rng.uniform(np.log(8), np.log(150), 2))
                x, y = rng.uniform(0, 300 - w), rng.uniform(0, 200 - h)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image["id"],
                        "category_id": int(rng.choice(CATEGORY_IDS[:3])),
                        "bbox": [float(x), float(y), float(w), float(h)],
                        "area": float(w * h),
                        "iscrowd": int(rng.random() < 0.15),
                    }
                )
        path = tmp_path / f"{seed}.json"
        categories = [{"id": i, "name": f"c{i}"} for i in CATEGORY_IDS]
        path.write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_coco_instances(name, {}, str(path), str(tmp_path))
        DatasetCatalog.get(name)
        return name, images, annotations, rng

    return make


def predictions(images, annotations, rng, per_image=(0, 130)):
    """Make noisy copies of the truth, random boxes, tied scores, some images without any."""
    outputs = []
    for image in images:
        boxes, classes = [], []
        for a in (a for a in annotations if a["image_id"] == image["id"]):
            x, y, w, h = np.array(a["bbox"]) + rng.normal(0, 3, 4)
            boxes.append([x, y, x + max(w, 1), y + max(h, 1)])
            classes.append(CATEGORY_IDS.index(a["category_id"]))
        for _ in range(int(rng.integers(*per_image))):
            x, y = rng.uniform(0, 250), rng.uniform(0, 150)
            boxes.append([x, y, x + rng.uniform(1, 100), y + rng.uniform(1, 100)])
            classes.append(int(rng.integers(0, 4)))
        if image["id"] == 3:
            boxes, classes = [], []
        scores = np.round(rng.uniform(0, 1, len(boxes)), 2)
        result = Instances((200, 300))
        result.pred_boxes = Boxes(torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32))
        result.scores = torch.tensor(scores, dtype=torch.float32)
        result.pred_classes = torch.tensor(classes, dtype=torch.long)
        outputs.append({"instances": result})
    return [{"image_id": image["id"]} for image in images], outputs


def run(evaluator, inputs, outputs, **kwargs):
    evaluator.reset()
    evaluator.process(inputs, outputs)
    return evaluator.evaluate(**kwargs)


def assert_same(first, second):
    assert list(first) == list(second)
    for key, value in first.items():
        assert math.isnan(value) == math.isnan(second[key]), key
        assert math.isnan(value) or value == pytest.approx(second[key], abs=1e-10), key


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(10))
def test_same_digits_as_pycocotools(dataset, tmp_path, backend, seed):
    name, images, annotations, rng = dataset(seed)
    inputs, outputs = predictions(images, annotations, rng)
    reference = run(COCOEvaluator(name, output_dir=None), inputs, outputs)["bbox"]
    fast = FastCOCOEvaluator(name, output_dir=str(tmp_path), backend=backend)
    assert_same(reference, run(fast, inputs, outputs)["bbox"])
    assert 0 < reference["AP"] < 100 and math.isnan(reference["AP-c11"])
    saved = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {row["category_id"] for row in saved} <= set(CATEGORY_IDS)


def test_an_image_that_two_processes_evaluate_counts_once(dataset, monkeypatch, caplog):
    """Samplers that give every process equally many images repeat some of them."""
    name, images, annotations, rng = dataset(5)
    inputs, outputs = predictions(images, annotations, rng)
    fast = FastCOCOEvaluator(name, backend="pycocotools")
    expected = run(fast, inputs, outputs)["bbox"]
    monkeypatch.setattr(fast_coco.comm, "gather", lambda part: [part, part[:3]])
    assert_same(expected, run(fast, inputs, outputs)["bbox"])
    assert "3 predictions repeat those of an image" in caplog.text


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_limits_and_image_subsets(dataset, backend):
    name, images, annotations, rng = dataset(99)
    inputs, outputs = predictions(images, annotations, rng, per_image=(100, 200))
    reference = COCOEvaluator(name, max_dets_per_image=20)
    fast = FastCOCOEvaluator(name, max_dets_per_image=20, backend=backend)
    assert_same(run(reference, inputs, outputs)["bbox"], run(fast, inputs, outputs)["bbox"])
    for ids in ([1, 2, 5], [5, 1, 1], [], [99]):
        some = {"img_ids": ids}
        expected = run(reference, inputs, outputs, **some)["bbox"]
        assert_same(expected, run(fast, inputs, outputs, **some)["bbox"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_give_the_same_digits(dataset, tmp_path, backend):
    name, images, annotations, rng = dataset(7)
    path = MetadataCatalog.get(name).json_file
    data = json.loads(Path(path).read_text())
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        a["iscrowd"] = 0
        a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    Path(path).write_text(json.dumps(data))
    inputs, outputs = predictions(images, annotations, rng, per_image=(0, 5))
    for output in outputs:
        instances = output["instances"]
        masks = torch.zeros(len(instances), 200, 300, dtype=torch.bool)
        for mask, box in zip(
            masks, instances.pred_boxes.tensor.round().long().clamp(min=0), strict=True
        ):
            mask[box[1] : box[3], box[0] : box[2]] = True
        instances.pred_masks = masks
    reference = run(COCOEvaluator(name), inputs, outputs)
    result = run(FastCOCOEvaluator(name, backend=backend), inputs, outputs)
    assert set(reference) == set(result) == {"bbox", "segm"}
    assert_same(reference["segm"], result["segm"])


def test_no_predictions_give_nan_or_nothing(dataset):
    name, images, annotations, rng = dataset(1)
    evaluator = FastCOCOEvaluator(name, backend="pycocotools")
    assert run(evaluator, [], []) == {}
    empty = Instances((200, 300))
    empty.pred_boxes, empty.scores = Boxes(torch.zeros(0, 4)), torch.zeros(0)
    empty.pred_classes = torch.zeros(0, dtype=torch.long)
    result = run(evaluator, [{"image_id": 1}], [{"instances": empty}])["bbox"]
    assert all(math.isnan(value) for value in result.values())


def test_a_class_that_the_data_set_lacks_is_an_error(dataset):
    name, images, annotations, rng = dataset(1)
    inputs, outputs = predictions(images, annotations, rng)
    outputs[1]["instances"].pred_classes[:] = 7
    with pytest.raises(ValueError, match="class 7.*only 4 categories"):
        run(FastCOCOEvaluator(name, backend="pycocotools"), inputs, outputs)


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_what_a_task_lacks_is_said_alike(dataset, backend):
    name, images, annotations, rng = dataset(1)
    path = Path(MetadataCatalog.get(name).json_file)
    data = json.loads(path.read_text())
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    path.write_text(json.dumps(data))
    inputs, outputs = predictions(images, annotations, rng)

    def make(**options):
        if backend is None:
            return COCOEvaluator(name, **options)
        return FastCOCOEvaluator(name, backend=backend, **options)

    with pytest.raises(ValueError, match="image 1 has no segmentation, which tasks=segm"):
        run(make(tasks=("bbox", "segm")), inputs, outputs)
    outputs[1]["instances"].pred_classes[:] = -1
    with pytest.raises(ValueError, match="image 2 has class -1, but the data set has only 4"):
        run(make(), inputs, outputs)
    for limit in (2.5, 10**9, [1, 10], "100"):
        with pytest.raises(ValueError, match="give one positive number, or three"):
            make(max_dets_per_image=limit)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="use auto, hotcoco"):
        load_backend("fastest")
