"""Ground truth of a batch as the criteria need it: class ids and normalized cxcywh boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detrex.layers import box_xyxy_to_cxcywh
from torch import Tensor

from tokendetr.detector.images import describe
from tokendetr.errors import InputError

Target = dict[str, Tensor]


def check_ground_truth(boxes_xyxy_px: Tensor, labels: Tensor, num_classes: int, where: str) -> None:
    """Raise InputError for a box that is not finite or a class id outside 0..num_classes - 1."""
    if len(boxes_xyxy_px) != len(labels):
        raise InputError(f"{where}: {len(boxes_xyxy_px)} gt_boxes but {len(labels)} gt_classes")
    finite = torch.isfinite(boxes_xyxy_px).all(-1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise InputError(f"{where}: gt_boxes[{row}] is not finite: {boxes_xyxy_px[row].tolist()}")
    outside = (labels < 0) | (labels >= num_classes)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise InputError(
            f"{where}: gt_classes[{row}] is {int(labels[row])}, but the model has classes "
            f"0..{num_classes - 1}; set model.num_classes to the data set's number of classes"
        )


def prepare_targets(
    records: Sequence[Mapping[str, Any]],
    *,
    num_classes: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> list[Target]:
    """Read ``instances`` of every record.

    Checks run on the device of the instances, normally the CPU, so they do not synchronize a GPU.

    Args:
        records: detectron2 inputs with ``instances`` (``gt_boxes`` xyxy in pixels, ``gt_classes``).
        num_classes: number of classes the model predicts.
        device: of the targets.
        dtype: of the boxes.

    Returns:
        One dict per image: ``labels`` [n] int64, ``boxes`` [n, 4] cxcywh as fractions of the image.

    Raises:
        InputError: a record has no instances, a non-finite box, or a class id out of range.
    """
    targets = []
    for position, record in enumerate(records):
        where = describe(record, position)
        if "instances" not in record:
            raise InputError(f"{where}: training needs 'instances' with gt_boxes and gt_classes")
        instances = record["instances"]
        boxes = instances.gt_boxes.tensor.to(dtype)
        labels = instances.gt_classes
        check_ground_truth(boxes, labels, num_classes, where)
        height, width = instances.image_size
        scale = boxes.new_tensor([width, height, width, height])
        targets.append(
            {
                "labels": labels.to(device, non_blocking=True),
                "boxes": box_xyxy_to_cxcywh(boxes / scale).to(device, non_blocking=True),
            }
        )
    return targets
