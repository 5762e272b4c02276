"""Training visualizations: ground truth beside predictions, in detectron2's event storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage

MAX_BOXES = 20


def store_first_image(
    records: Sequence[Mapping[str, Any]],
    predict: Callable[[], Sequence[Instances]],
    *,
    period: int,
    input_format: str,
) -> None:
    """Store the first image with its true and best predicted boxes every ``period`` iterations.

    Args:
        records: the batch; ``image`` [3, H, W], ``instances`` with ``gt_boxes``.
        predict: returns detections in pixels of the network's input; called only when an image is
            due.
        period: iterations between images.
        input_format: channel order of ``image``.
    """
    storage = get_event_storage()
    if storage.iter % period:
        return
    from detectron2.data.detection_utils import convert_image_to_rgb
    from detectron2.utils.visualizer import Visualizer

    record = records[0]
    boxes = predict()[0].pred_boxes[:MAX_BOXES].tensor.detach().cpu().numpy()
    image = convert_image_to_rgb(record["image"].permute(1, 2, 0), input_format)
    truth = Visualizer(image, None).overlay_instances(boxes=record["instances"].gt_boxes)
    found = Visualizer(image, None).overlay_instances(boxes=boxes)
    both = np.concatenate((truth.get_image(), found.get_image()), axis=1).transpose(2, 0, 1)
    storage.put_image("Left: GT bounding boxes;  Right: Predicted boxes", torch.from_numpy(both))
