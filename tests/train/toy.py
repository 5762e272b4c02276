"""A tiny data set, detector and config: real loaders, hooks and files, in fractions of a second."""

import json
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from detectron2.structures import Boxes, Instances
from detrex.data import DetrDatasetMapper
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torch.nn import functional as F

NUM_CLASSES = 3

FEW = ["train.max_iter=4", "train.checkpointer.period=2", "train.eval_period=0"]
"""Overrides of a run of four steps with a checkpoint after every second one."""


def write_dataset(root: Path, num_images: int = 10, seed: int = 0) -> Path:
    """Write images and a COCO JSON; the fourth image has no boxes, the others one to four."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(num_images):
        width, height = (40, 28) if i % 3 else (28, 40)
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i:03d}.png")
        images.append({"id": i + 1, "file_name": f"{i:03d}.png", "width": width, "height": height})
        for _ in range(0 if i == 3 else int(rng.integers(1, 5))):
            w, h = rng.uniform(6, 20, 2)
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": int(rng.integers(1, NUM_CLASSES + 1)),
                    "bbox": [float(x), float(y), float(w), float(h)],
                    "area": float(w * h),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": f"class{i}"} for i in range(NUM_CLASSES)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    path = root / "annotations.json"
    path.write_text(json.dumps(data))
    return path


def register(name: str, root: Path) -> None:
    """(Re-)register the data set of ``root``."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, {}, str(root / "annotations.json"), str(root / "images"))


class ToyDetector(nn.Module):
    """Predicts one box and class per image; losses are divided by the number of boxes, or images.

    Args:
        num_classes: number of classes.
        dropout: makes training depend on the random state.
        normalize: "boxes" (over all ranks, as detection transformers do) or "images".
        dtype: of the parameters.
        poison: image id whose loss is NaN.
        device: as upstream's detectors have it; the parameters decide.
    """

    def __init__(
        self,
        num_classes: int = NUM_CLASSES,
        dropout: float = 0.0,
        normalize: str = "images",
        dtype: str = "float32",
        poison: int = -1,
        device: str = "cpu",
    ):
        super().__init__()
        self.num_classes = num_classes
        self.normalize = normalize
        self.poison = poison
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8).requires_grad_(False)
        self.dropout = nn.Dropout(dropout)
        self.class_embed = nn.Linear(8 * 16, num_classes)
        self.bbox_embed = nn.Linear(8 * 16, 4)
        # Heads stored twice, as DINO stores its own.
        self.decoder = nn.Module()
        self.decoder.class_embed = self.class_embed
        self.to(getattr(torch, dtype))

    def features(self, image):
        x = image[None].to(self.stem.weight)
        # One image at a time: statistics and results do not depend on the batch.
        self.norm.eval()
        x = F.relu(self.norm(self.stem(x / 255.0)))
        return self.dropout(F.adaptive_avg_pool2d(x, 4).flatten(1))

    def forward(self, batched_inputs):
        outputs = []
        for record in batched_inputs:
            x = self.features(record["image"])
            outputs.append((self.class_embed(x)[0], self.bbox_embed(x)[0].sigmoid()))
        if self.training:
            return self.losses(batched_inputs, outputs)
        return [self.detections(r, *o) for r, o in zip(batched_inputs, outputs, strict=True)]

    def losses(self, records, outputs):
        loss_class = loss_bbox = sum(o.sum() for output in outputs for o in output) * 0.0
        for record, (logits, box) in zip(records, outputs, strict=True):
            instances = record["instances"]
            height, width = instances.image_size
            scale = box.new_tensor([width, height, width, height])
            targets = instances.gt_boxes.tensor.to(box) / scale
            loss_bbox = loss_bbox + (box - targets).abs().sum()
            labels = F.one_hot(instances.gt_classes.to(logits.device), self.num_classes)
            bce = F.binary_cross_entropy_with_logits
            loss_class = loss_class + bce(
                logits.expand(len(labels), -1), labels.to(logits), reduction="sum"
            )
            if record["image_id"] == self.poison:
                loss_class = loss_class * float("nan")
        count = float(len(records))
        if self.normalize == "boxes":
            count = float(sum(len(r["instances"]) for r in records))
            if torch.distributed.is_initialized():
                shared = torch.tensor(count, dtype=torch.float64)
                torch.distributed.all_reduce(shared)
                count = float(shared) / torch.distributed.get_world_size()
            count = max(count, 1.0)
        return {"loss_class": loss_class / count, "loss_bbox": loss_bbox / count}

    def detections(self, record, logits, box):
        height, width = record["height"], record["width"]
        corners = torch.cat([torch.minimum(box[:2], box[2:]), torch.maximum(box[:2], box[2:])])
        result = Instances((height, width))
        scale = box.new_tensor([width, height, width, height])
        result.pred_boxes = Boxes((corners * scale).expand(self.num_classes, 4).clone())
        result.scores = logits.sigmoid()
        result.pred_classes = torch.arange(self.num_classes)
        return {"instances": result}


def toy_detector_of(value: float) -> ToyDetector:
    """Build a detector with all parameters at one value."""
    model = ToyDetector()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def make_config(root: Path, output_dir: Path, name: str = "toy"):
    """Return a complete config over the data set in ``root``."""
    register(name, root)
    cfg = OmegaConf.create({}, flags={"allow_objects": True})
    flip = [
        L(T.RandomFlip)(),
        L(T.ResizeShortestEdge)(short_edge_length=(20, 24, 28), sample_style="choice"),
    ]
    cfg.dataloader = {
        "train": L(build_detection_train_loader)(
            dataset=L(get_detection_dataset_dicts)(names=name, filter_empty=False),
            mapper=L(DetrDatasetMapper)(
                augmentation=flip, augmentation_with_crop=None, is_train=True
            ),
            total_batch_size=4,
            num_workers=0,
        ),
        "test": L(build_detection_test_loader)(
            dataset=L(get_detection_dataset_dicts)(names=name, filter_empty=False),
            mapper=L(DetrDatasetMapper)(
                augmentation=[], augmentation_with_crop=None, is_train=False
            ),
            num_workers=0,
        ),
        "evaluator": L(COCOEvaluator)(dataset_name=name, output_dir=str(output_dir)),
    }
    cfg.model = L(ToyDetector)(num_classes=NUM_CLASSES, dropout=0.2, device="cpu")
    cfg.optimizer = L(torch.optim.AdamW)(
        params=L(get_default_optimizer_params)(weight_decay_norm=0.0), lr=1e-2, weight_decay=1e-4
    )
    cfg.lr_multiplier = L(WarmupParamScheduler)(
        scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.1),
        warmup_length=0.2,
        warmup_factor=0.1,
    )
    cfg.train = {
        "output_dir": str(output_dir),
        "max_iter": 12,
        "seed": 7,
        "device": "cpu",
        "eval_period": 5,
        "log_period": 4,
        "checkpointer": {"period": 4, "max_to_keep": 100},
        "clip_grad": {"enabled": True, "params": {"max_norm": 0.5, "norm_type": 2}},
    }
    return cfg


def batch(size, seed=0, boxes=None):
    generator = torch.Generator().manual_seed(seed)
    records = []
    for i in range(size):
        count = i % 4 if boxes is None else boxes[i]
        instances = Instances((20, 30))
        instances.gt_boxes = Boxes(torch.rand(count, 4, generator=generator) * 20)
        instances.gt_classes = torch.randint(0, 3, (count,), generator=generator)
        image = torch.randint(0, 255, (3, 20, 30), generator=generator, dtype=torch.uint8)
        records.append(
            {"image": image, "instances": instances, "image_id": i, "file_name": f"image{i}.png"}
        )
    return records
