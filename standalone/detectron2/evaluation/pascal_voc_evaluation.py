"""PASCAL VOC box AP, computed from the XML annotations."""

import logging
import os
import xml.etree.ElementTree as ElementTree
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data.catalog import MetadataCatalog
from detectron2.data.datasets.pascal_voc import _is_difficult
from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

__all__ = ["PascalVOCDetectionEvaluator"]

_IOU_PERCENT = range(50, 100, 5)


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """PASCAL VOC's AP: AP50, AP75 and the mean over IoU 0.5 to 0.95.

    Objects marked difficult neither count as found nor as missed. The metric of 2007 samples
    precision at 11 recalls; later years integrate it.

    Args:
        dataset_name: a data set registered with ``register_pascal_voc``.
    """

    def __init__(self, dataset_name: str) -> None:
        self._dataset_name = dataset_name
        metadata = MetadataCatalog.get(dataset_name)
        root = PathManager.get_local_path(os.path.join(metadata.dirname, "Annotations/"))
        self._annotation_dir = root
        self._image_set_path = os.path.join(
            metadata.dirname, "ImageSets", "Main", metadata.split + ".txt"
        )
        self._class_names = metadata.thing_classes
        assert metadata.year in (2007, 2012), metadata.year
        self._is_2007 = metadata.year == 2007
        self._logger = logging.getLogger(__name__)
        self._predictions: dict[int, list[tuple[str, float, list[float]]]] = defaultdict(list)

    def reset(self) -> None:
        self._predictions = defaultdict(list)

    def process(self, inputs: Iterable[dict[str, Any]], outputs: Iterable[dict[str, Any]]) -> None:
        for record, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to(torch.device("cpu"))
            # VOC's boxes count pixels from 1 and include the last one.
            boxes = instances.pred_boxes.tensor.double() + torch.tensor([1.0, 1.0, 0.0, 0.0])
            rows = zip(
                instances.pred_classes.tolist(),
                instances.scores.tolist(),
                boxes.tolist(),
                strict=True,
            )
            for class_id, score, box in rows:
                self._predictions[class_id].append((str(record["image_id"]), score, box))

    def evaluate(self) -> dict[str, Any] | None:
        """Compute the metrics.

        Returns:
            ``{"bbox": {"AP", "AP50", "AP75"}}`` from 0 to 100, means over the classes; None on
            ranks other than 0.
        """
        gathered = comm.gather(dict(self._predictions), dst=0)
        if not comm.is_main_process():
            return None
        predictions: dict[int, list[tuple[str, float, list[float]]]] = defaultdict(list)
        for of_rank in gathered:
            for class_id, rows in of_rank.items():
                predictions[class_id].extend(rows)
        self._logger.info(
            "%s: average precision as VOC %d defines it, computed here, not by its Matlab code",
            self._dataset_name,
            2007 if self._is_2007 else 2012,
        )
        objects = self._read_objects()
        aps: dict[int, list[float]] = {percent: [] for percent in _IOU_PERCENT}
        for class_id, name in enumerate(self._class_names):
            detections = _Detections.from_rows(predictions[class_id])
            for percent in _IOU_PERCENT:
                ap = _voc_average_precision(detections, objects[name], percent / 100, self._is_2007)
                aps[percent].append(ap * 100)
        mean = {percent: float(np.mean(values)) for percent, values in aps.items()}
        results: dict[str, Any] = OrderedDict()
        results["bbox"] = {
            "AP": float(np.mean(list(mean.values()))),
            "AP50": mean[50],
            "AP75": mean[75],
        }
        return results

    def _read_objects(self) -> dict[str, dict[str, "_Objects"]]:
        """Read the annotated objects: class -> image -> objects; images without any are omitted."""
        with PathManager.open(self._image_set_path) as file:
            image_ids = [line.split()[0] for line in file if line.strip()]
        objects: dict[str, dict[str, _Objects]] = {name: {} for name in self._class_names}
        for image_id in image_ids:
            path = os.path.join(self._annotation_dir, image_id + ".xml")
            with PathManager.open(path) as file:
                tree = ElementTree.parse(file)
            found: dict[str, list[tuple[list[float], bool]]] = defaultdict(list)
            for element in tree.findall("object"):
                box = [
                    float(element.findtext(f"bndbox/{side}", "nan"))
                    for side in ("xmin", "ymin", "xmax", "ymax")
                ]
                try:
                    difficult = _is_difficult(element)
                except ValueError as error:
                    raise ValueError(f"Cannot read the VOC annotation '{path}': {error}") from error
                found[element.findtext("name", "").strip()].append((box, difficult))
            for name, entries in found.items():
                if name not in objects:
                    raise ValueError(f"Unknown class '{name}' in the VOC annotation '{path}'.")
                boxes = np.array([box for box, _ in entries])
                objects[name][image_id] = _Objects(boxes, np.array([d for _, d in entries]))
        return objects


@dataclass(frozen=True)
class _Objects:
    """Objects of a class in an image: ``boxes [N, 4]`` (VOC's XYXY) and ``difficult [N]``."""

    boxes: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True)
class _Detections:
    """Detections of a class over all images, by descending score."""

    image_ids: list[str]
    boxes: np.ndarray

    @staticmethod
    def from_rows(rows: list[tuple[str, float, list[float]]]) -> "_Detections":
        ordered = sorted(rows, key=lambda row: -row[1])
        boxes = np.array([box for _, _, box in ordered], dtype=np.float64).reshape(-1, 4)
        return _Detections([image_id for image_id, _, _ in ordered], boxes)


def _voc_average_precision(
    detections: _Detections, objects: dict[str, _Objects], iou_threshold: float, use_07_metric: bool
) -> float:
    """Compute the AP of one class.

    Each detection, by descending score, is compared with the object it overlaps most: a true
    positive if the IoU exceeds the threshold and no better detection matched the object; ignored if
    the object is difficult; a false positive otherwise.

    Args:
        detections: all detections of the class.
        objects: image -> its objects of the class.
        iou_threshold: a match needs a larger IoU.
        use_07_metric: see :func:`_average_precision`.

    Returns:
        AP in [0, 1]; 0 for a class without objects.
    """
    num_objects = sum(int((~entry.difficult).sum()) for entry in objects.values())
    if num_objects == 0:
        return 0.0
    taken = {image_id: np.zeros(len(entry.boxes), bool) for image_id, entry in objects.items()}
    right = np.zeros(len(detections.image_ids), dtype=bool)
    wrong = np.zeros(len(detections.image_ids), dtype=bool)
    for index, (image_id, box) in enumerate(
        zip(detections.image_ids, detections.boxes, strict=True)
    ):
        entry = objects.get(image_id)
        if entry is None:
            wrong[index] = True
            continue
        ious = _inclusive_iou(box, entry.boxes)
        best = int(ious.argmax())
        if ious[best] <= iou_threshold:
            wrong[index] = True
        elif not entry.difficult[best]:
            right[index] = not taken[image_id][best]
            wrong[index] = taken[image_id][best]
            taken[image_id][best] = True
    num_right, num_wrong = right.cumsum(), wrong.cumsum()
    recall = num_right / num_objects
    precision = num_right / np.maximum(num_right + num_wrong, np.finfo(np.float64).eps)
    return _average_precision(recall, precision, use_07_metric)


def _inclusive_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Compute the IoU of a box with ``[N, 4]`` boxes, the last pixel included."""
    top_left = np.maximum(box[:2], boxes[:, :2])
    bottom_right = np.minimum(box[2:], boxes[:, 2:])
    overlap = np.maximum(bottom_right - top_left + 1.0, 0.0).prod(axis=1)
    area = (box[2:] - box[:2] + 1.0).prod()
    areas = (boxes[:, 2:] - boxes[:, :2] + 1.0).prod(axis=1)
    return overlap / (area + areas - overlap)


def _average_precision(recall: np.ndarray, precision: np.ndarray, use_07_metric: bool) -> float:
    """Compute the area under a precision-recall curve with ascending recall.

    Precision at a recall is the best one at that recall or any higher one.

    Args:
        recall, precision: same length, in [0, 1].
        use_07_metric: the mean at the recalls 0, 0.1, ..., 1 instead of the exact area.
    """
    if use_07_metric:
        # Multiples of 0.1 as arange rounds them: the values the challenge's code compares with.
        reached = [precision[recall >= level] for level in np.arange(0.0, 1.1, 0.1)]
        return float(np.mean([values.max() if values.size else 0.0 for values in reached]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(recall, prepend=0.0)
    return float((steps * envelope).sum())
