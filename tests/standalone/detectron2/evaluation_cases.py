"""Predictions made from the ground truth."""

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances, polygons_to_bitmask


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
