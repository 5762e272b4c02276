"""Recall of ground-truth boxes by the tokens that an encoder keeps.

Shapes: G box, T tokens of a level, L level.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch import Tensor

from tokendetr.encoder.forward_context import record_tokens
from tokendetr.encoder.layer_tokens import layer_tokens
from tokendetr.encoder.trace import ForwardTrace, TokenTrace
from tokendetr.tokens import LevelLayout

__all__ = ["TokenRecall", "level_counts"]


def tokens_in_boxes(
    boxes_xyxy_norm: Tensor, layout: LevelLayout, level: int, image: int
) -> tuple[Tensor, Tensor]:
    """Return which real tokens of a level have their center strictly inside which box.

    Args:
        boxes_xyxy_norm: [G, 4], relative to the real part of the image.
        layout: geometry of the batch.
        level: level of the pyramid, from 0.
        image: index of the image in the batch.

    Returns:
        Bool [G, T], and bool [T], True for real tokens.
    """
    height, width = layout.level_shapes[level]
    valid_HW = layout.grid(layout.valid_BN, level)[image].cpu()
    y_H = (torch.arange(height) + 0.5) / valid_HW[:, 0].sum()
    x_W = (torch.arange(width) + 0.5) / valid_HW[0].sum()
    left_G1, top_G1, right_G1, bottom_G1 = boxes_xyxy_norm.cpu().split(1, dim=1)
    in_GH = (y_H > top_G1) & (y_H < bottom_G1)
    in_GW = (x_W > left_G1) & (x_W < right_G1)
    inside_GHW = in_GH[:, :, None] & in_GW[:, None, :] & valid_HW
    return inside_GHW.flatten(1), valid_HW.flatten()


def level_counts(
    boxes_xyxy_norm: Tensor, forward: ForwardTrace, *, image: int = 0
) -> dict[str, Tensor]:
    """Count the boxes and tokens of an image that the layers of one pass kept, summed over layers.

    Args:
        boxes_xyxy_norm: [G, 4], relative to the real part of the image.
        forward: the recorded pass.
        image: index of the image in the recorded batch.

    Returns:
        Float64 [L] each: ``boxes`` with a token's center inside, ``reached``: those with a query
        inside; ``box_tokens``: tokens inside any box, ``kept``: those that are queries;
        ``tokens``: all real tokens, ``queries``: those that are queries.
    """
    layout = forward.layout
    names = ("boxes", "reached", "box_tokens", "kept", "tokens", "queries")
    sums = {name: torch.zeros(layout.num_levels, dtype=torch.float64) for name in names}
    places = [
        tokens_in_boxes(boxes_xyxy_norm, layout, level, image) for level in range(layout.num_levels)
    ]
    for layer in forward.layers:
        query_N = torch.from_numpy(layer_tokens(layer.token_map, layout, image).anchor_N)
        for level, query_T in enumerate(query_N.split(layout.level_sizes)):
            inside_GT, real_T = places[level]
            query_T = query_T & real_T
            found = {
                "boxes": inside_GT.any(dim=1),
                "reached": (inside_GT & query_T).any(dim=1),
                "box_tokens": inside_GT.any(dim=0),
                "kept": inside_GT.any(dim=0) & query_T,
                "tokens": real_T,
                "queries": query_T,
            }
            for name, flags in found.items():
                sums[name][level] += flags.sum()
    return sums


class TokenRecall(DatasetEvaluator):
    """Evaluator of the share of objects that the encoder's queries reach.

    The results, task ``tokens``, are percentages over all images and layers: ``queries`` of all
    tokens, ``kept`` of the tokens inside boxes, ``reached`` of the boxes that have tokens inside,
    and ``kept-l1``, ``reached-l1`` and so on for each level, 1 being the finest.

    Args:
        dataset_name: the registered data set, with annotations, that is evaluated.

    Raises:
        ValueError: raised in evaluation if the model's encoder records no tokens.
    """

    def __init__(self, dataset_name: str) -> None:
        self._dataset_name = dataset_name
        self._boxes_xyxy_norm: dict[Any, Tensor] | None = None
        self._recording = ExitStack()
        self._trace: TokenTrace | None = None
        self._sums: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Start recording the model's tokens."""
        self._recording.close()
        self._sums = {}
        if self._boxes_xyxy_norm is None:
            records = DatasetCatalog.get(self._dataset_name)
            self._boxes_xyxy_norm = {record["image_id"]: _boxes(record) for record in records}
        self._trace = self._recording.enter_context(record_tokens())

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Count what the last pass kept of its images' objects, and discard the recording."""
        if self._trace is None or not self._trace.forwards or self._boxes_xyxy_norm is None:
            raise ValueError("the model has no encoder of tokendetr: no tokens were recorded")
        forward = self._trace.forwards[-1]
        for image, record in enumerate(inputs):
            boxes = self._boxes_xyxy_norm[record["image_id"]]
            for name, counts in level_counts(boxes, forward, image=image).items():
                self._sums[name] = self._sums.get(name, torch.zeros_like(counts)) + counts
        self._trace.forwards.clear()

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Return the percentages on rank 0; NaN if there is nothing to count."""
        self._recording.close()
        sums: dict[str, Tensor] = {}
        for part in comm.all_gather(self._sums):
            for name, counts in part.items():
                sums[name] = sums.get(name, torch.zeros_like(counts)) + counts
        if not comm.is_main_process() or not sums:
            return None
        results = {}
        for name, of in (("queries", "tokens"), ("kept", "box_tokens"), ("reached", "boxes")):
            results[name] = 100 * float(sums[name].sum() / sums[of].sum())
            for level, share in enumerate((sums[name] / sums[of]).tolist(), start=1):
                results[f"{name}-l{level}"] = 100 * share
        return OrderedDict(tokens=results)


def _boxes(record: Mapping[str, Any]) -> Tensor:
    """Return an image's boxes without crowds, relative to its size, [G, 4]."""
    boxes = [
        BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        for annotation in record["annotations"]
        if not annotation.get("iscrowd", 0)
    ]
    size = torch.tensor([record["width"], record["height"]] * 2, dtype=torch.float32)
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) / size
