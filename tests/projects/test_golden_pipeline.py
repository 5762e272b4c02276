"""``tools/train_net.py --eval-only`` gives upstream's detections, from files to results file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from tests.golden import formula
from tests.golden import reference as golden

DEFAULT = "deformable_detr_r50_with_box_refinement"
NAMES = [
    pytest.param(name, marks=() if name == DEFAULT else pytest.mark.slow)
    for name in (*golden.FAST, *golden.SLOW)
]


def contiguous_ids() -> dict[int, int]:
    return MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id


def write_coco(root: Path) -> None:
    """Write the golden samples as ``coco_2017_val``."""
    category_of = {index: category for category, index in contiguous_ids().items()}
    images, annotations = [], []
    (root / "coco" / "val2017").mkdir(parents=True)
    (root / "coco" / "annotations").mkdir()
    for number, sample in enumerate(formula.records(), start=1):
        name = f"{number:012d}.png"
        pixels = sample["image"].round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(root / "coco" / "val2017" / name)
        size = {key: sample[key] for key in ("height", "width")}
        images.append({"id": number, "file_name": name, **size})
        instances = sample["instances"]
        for box, label in zip(instances.gt_boxes.tensor, instances.gt_classes, strict=True):
            x0, y0, x1, y1 = box.tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category_of[int(label)],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    names = MetadataCatalog.get("coco_2017_val").thing_classes
    categories = [{"id": i, "name": names[index]} for i, index in contiguous_ids().items()]
    path = root / "coco" / "annotations" / "instances_val2017.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )


def evaluate(name: str, folder: Path) -> list[dict]:
    """Run the tool on a checkpoint of formula weights; return the entries of its results file."""
    write_coco(folder / "datasets")
    model = golden.build(name)
    formula.fill(model)
    torch.save({"model": model.state_dict()}, folder / "formula.pth")
    config = f"projects/{golden.expected(name)['config']}"
    command = ["tools/train_net.py", "--config-file", config, "--eval-only"]
    overrides = [
        f"train.init_checkpoint={folder}/formula.pth",
        f"train.output_dir={folder}/output",
        f"dataloader.evaluator.output_dir={folder}/output",
        "train.device=cpu",
        "dataloader.test.num_workers=1",
        "dataloader.test.mapper._target_=tests.golden.unrounded.UnroundedMapper",
        "dataloader.test.mapper.augmentation=[]",  # the samples enter at their own size
    ]
    run = subprocess.run(
        [sys.executable, *command, *overrides],
        cwd=golden.ROOT,
        env={**os.environ, "DETECTRON2_DATASETS": str(folder / "datasets")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "copypaste: Task: bbox" in run.stdout
    return json.loads((folder / "output" / "coco_instances_results.json").read_text())


def to_instances(results: list[dict], image_id: int) -> Instances:
    """Convert the results of one image, by descending score, to a detector's output."""
    found = [entry for entry in results if entry["image_id"] == image_id]
    found.sort(key=lambda entry: -entry["score"])
    instances = Instances(formula.SIZES[image_id - 1])
    boxes = torch.tensor([entry["bbox"] for entry in found])
    boxes[:, 2:] += boxes[:, :2]
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.tensor([entry["score"] for entry in found])
    classes = [contiguous_ids()[entry["category_id"]] for entry in found]
    instances.pred_classes = torch.tensor(classes)
    return instances


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_evaluation_from_files_gives_upstreams_detections(name, tmp_path):
    results = evaluate(name, tmp_path)
    numbers = np.load(golden.GOLDEN / f"{name}.npz")
    allowed = golden.TIED_PROPOSALS.get(golden.expected(name)["config"], 0)
    for sample in range(2):
        found = to_instances(results, sample + 1)
        assert len(found) >= len(numbers[f"eval{sample}_scores"])
        golden.assert_same_detections(found, numbers, f"eval{sample}", allowed)
