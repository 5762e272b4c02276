"""Turn predictions into detectron2 ``Instances`` in the original image's pixels.

Shapes: B image, Q query, V class, T detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances
from detrex.layers import box_cxcywh_to_xyxy
from torch import Tensor

from tokendetr.detector.queries import Predictions


def best_detections(
    logits_BQV: Tensor, boxes_BQ4: Tensor, valid_BQ: Tensor | None, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ``limit`` best (query, class) pairs of each image by sigmoid score, or all.

    Returns:
        scores_BT (descending, -inf for padding queries), classes_BT, boxes_BT4.
    """
    num_classes = logits_BQV.shape[-1]
    scores_BQV = logits_BQV.sigmoid()
    if valid_BQ is not None:
        scores_BQV = scores_BQV.masked_fill(~valid_BQ[..., None], float("-inf"))
    pairs_BP = scores_BQV.flatten(1)
    scores_BT, pair_BT = pairs_BP.topk(min(limit, pairs_BP.shape[1]), dim=1)
    query_BT = pair_BT.div(num_classes, rounding_mode="floor")
    boxes_BT4 = boxes_BQ4.gather(1, query_BT[..., None].expand(-1, -1, 4))
    return scores_BT, pair_BT % num_classes, boxes_BT4


def to_instances(
    predictions: Predictions, sizes: Sequence[tuple[int, int]], *, limit: int
) -> list[Instances]:
    """Return the last decoder layer's detections, boxes xyxy in pixels of the network's input."""
    logits_BQV, boxes_BQ4 = predictions.logits_SBQV[-1], predictions.boxes_SBQ4[-1]
    scores_BT, classes_BT, boxes_BT4 = best_detections(
        logits_BQV, boxes_BQ4, predictions.valid_BQ, limit
    )
    results = []
    for scores, classes, boxes, (height, width) in zip(
        scores_BT, classes_BT, boxes_BT4, sizes, strict=True
    ):
        result = Instances((height, width))
        result.pred_boxes = Boxes(box_cxcywh_to_xyxy(boxes))
        result.pred_boxes.scale(scale_x=width, scale_y=height)
        result.scores = scores
        result.pred_classes = classes
        if predictions.valid_BQ is not None:
            result = result[torch.isfinite(scores)]
        results.append(result)
    return results


def to_original_size(
    results: Sequence[Instances], records: Sequence[Mapping[str, Any]]
) -> list[dict[str, Instances]]:
    """Scale and clip detections to the ``height`` and ``width`` of each input record."""
    processed = []
    for result, record in zip(results, records, strict=True):
        height, width = result.image_size
        scaled = detector_postprocess(
            result, record.get("height", height), record.get("width", width)
        )
        processed.append({"instances": scaled})
    return processed
