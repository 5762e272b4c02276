"""Evaluate SPT's selection: the share of selected tokens, and of object tokens among them.

Shapes: L blocks of a stage, H and W rows and columns of its tokens.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch import Tensor

from spt_backbone.backbone import OUTPUT_NAME
from spt_backbone.labels import box_cells
from tokendetr.config.wrap import build_wrapped
from tokendetr.io.atomic import write_atomically


@dataclass(frozen=True)
class StageCounts:
    """Selection of the blocks of one stage in one image.

    Attributes:
        image_id: of the data set.
        stride: pixels per token.
        tokens: number of tokens of the stage.
        object_tokens: number that contain a part of an object; None if unknown.
        selected: number of selected tokens, mean over blocks.
        selected_object_tokens: number of selected object tokens, mean over blocks.
    """

    image_id: int | str
    stride: int
    tokens: int
    object_tokens: int | None
    selected: float
    selected_object_tokens: float | None


class SelectionEvaluator(DatasetEvaluator):
    """Select ratio and object-token retention of every image.

    Task ``selection``, per stride: ``select_ratio`` (mean over images and blocks; also ``_min`` and
    ``_max`` over images), ``object_token_retention`` (selected share of the object tokens of all
    images; object tokens contain a part of an object) and ``object_token_density`` (share of object
    tokens among the selected ones), all from 0 to 1. Empty for a model without a selection.

    Args:
        dataset_name: data set whose boxes define object tokens; None omits those figures.
        output_dir: folder of ``token_selection.json`` with each image's counts; None: no file.

    Source: SPT, arXiv 2410.23608, appendix B.3.
    """

    def __init__(self, *, dataset_name: str | None = None, output_dir: str | None = None) -> None:
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._boxes: dict[Any, Tensor] | None = None
        self._counts: list[StageCounts] = []

    def reset(self) -> None:
        """Discard all counts."""
        self._counts = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> None:
        """Count one batch."""
        for record, output in zip(inputs, outputs, strict=True):
            choice = output.get(OUTPUT_NAME, {})
            for stride, mask_LHW in choice.items():
                self._counts.append(self._count(record, stride, mask_LHW))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return the figures of all images on rank 0."""
        counts = [count for rank in comm.gather(self._counts) for count in rank]
        if not comm.is_main_process() or not counts:
            return None
        if self._output_dir:
            os.makedirs(self._output_dir, exist_ok=True)
            content = json.dumps([asdict(count) for count in counts])
            path = os.path.join(self._output_dir, "token_selection.json")
            write_atomically(path, content.encode())
        figures: dict[str, float] = {}
        for stride in sorted({count.stride for count in counts}):
            figures.update(_figures([count for count in counts if count.stride == stride], stride))
        return {"selection": figures}

    def _count(self, record: Mapping[str, Any], stride: int, mask_LHW: Tensor) -> StageCounts:
        mask_LHW = mask_LHW.cpu()
        boxes_xyxy_norm = self._boxes_of(record)
        objects = hits = None
        if boxes_xyxy_norm is not None:
            height, width = record["image"].shape[-2:]
            boxes_px = boxes_xyxy_norm * torch.tensor([width, height, width, height])
            grid = (int(mask_LHW.shape[1]), int(mask_LHW.shape[2]))
            label_HW = box_cells(boxes_px, grid, stride)
            objects = int(label_HW.sum())
            hits = float((mask_LHW & label_HW).sum()) / len(mask_LHW)
        return StageCounts(
            image_id=record.get("image_id", record.get("file_name", "")),
            stride=stride,
            tokens=mask_LHW[0].numel(),
            object_tokens=objects,
            selected=float(mask_LHW.sum()) / len(mask_LHW),
            selected_object_tokens=hits,
        )

    def _boxes_of(self, record: Mapping[str, Any]) -> Tensor | None:
        """Return an image's boxes [G, 4], xyxy relative to its size, or None if unknown."""
        if self._dataset_name is None:
            return None
        if self._boxes is None:
            self._boxes = {
                image["image_id"]: _boxes_xyxy_norm(image)
                for image in DatasetCatalog.get(self._dataset_name)
            }
        return self._boxes.get(record.get("image_id"))


def build_with_selection(
    *,
    wrapped_target: str | Callable[..., DatasetEvaluator],
    dataset_name: str,
    output_dir: str | None = None,
    **kwargs: Any,
) -> DatasetEvaluators:
    """Construct an evaluator together with a :class:`SelectionEvaluator`, for a config's node.

    Args:
        wrapped_target: the evaluator's class, or its full dotted name.
        dataset_name: of both.
        output_dir: of both.
        **kwargs: the evaluator's further arguments.
    """
    folder = {} if output_dir is None else {"output_dir": output_dir}
    return DatasetEvaluators(
        [
            build_wrapped(wrapped_target, dataset_name=dataset_name, **folder, **kwargs),
            SelectionEvaluator(dataset_name=dataset_name, output_dir=output_dir),
        ]
    )


def _boxes_xyxy_norm(image: Mapping[str, Any]) -> Tensor:
    boxes = [
        BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        for annotation in image.get("annotations", [])
        if not annotation.get("iscrowd", 0)
    ]
    width, height = float(image["width"]), float(image["height"])
    pixels = torch.tensor([list(box) for box in boxes], dtype=torch.float32).view(-1, 4)
    return pixels / torch.tensor([width, height, width, height])


def _figures(counts: Sequence[StageCounts], stride: int) -> dict[str, float]:
    ratios = [count.selected / count.tokens for count in counts]
    figures = {
        "select_ratio": sum(ratios) / len(ratios),
        "select_ratio_min": min(ratios),
        "select_ratio_max": max(ratios),
    }
    known = [count for count in counts if count.object_tokens is not None]
    objects = sum(count.object_tokens or 0 for count in known)
    selected = sum(count.selected for count in known)
    hits = sum(count.selected_object_tokens or 0.0 for count in known)
    if objects > 0:
        figures["object_token_retention"] = hits / objects
    if known and selected > 0:
        figures["object_token_density"] = hits / selected
    return {f"{name}_stride{stride}": value for name, value in figures.items()}
