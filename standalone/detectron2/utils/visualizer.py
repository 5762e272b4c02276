"""Draw boxes, masks and labels on images."""

import math
from collections.abc import Mapping, Sequence
from enum import Enum, unique
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, BoxMode, Instances, PolygonMasks
from detectron2.utils.file_io import PathManager

from ._drawing import GenericMask, VisImage
from ._shapes import SMALL_OBJECT_AREA, ShapeDrawer, as_tensor
from .colormap import random_color

__all__ = ["ColorMode", "VisImage", "Visualizer"]

_OFF_WHITE = (1.0, 1.0, 240.0 / 255)
_KEYPOINT_RED = (1.0, 0.0, 0.0)
_KEYPOINT_THRESHOLD = 0.05


@unique
class ColorMode(Enum):
    """Choice of colors for predictions."""

    IMAGE = 0
    """A random color for every instance."""
    SEGMENTATION = 1
    """Similar colors for instances of a class (``thing_colors`` of the metadata)."""
    IMAGE_BW = 2
    """Like IMAGE, on an image that is gray outside the detections."""


def _create_text_labels(
    classes: Sequence[int] | None,
    scores: Any,
    class_names: Sequence[str] | None,
    is_crowd: Sequence[Any] | None = None,
) -> list[str] | None:
    """Return texts such as "dog 87%" or "dog|crowd"."""
    labels: list[str] | None = None
    if classes is not None:
        labels = [class_names[i] if class_names else str(i) for i in classes]
    if scores is not None:
        percents = [f"{float(score) * 100:.0f}%" for score in scores]
        if labels is None:
            labels = percents
        else:
            labels = [f"{a} {b}" for a, b in zip(labels, percents, strict=True)]
    if labels is not None and is_crowd is not None:
        labels = [
            text + ("|crowd" if crowd else "") for text, crowd in zip(labels, is_crowd, strict=True)
        ]
    return labels


class Visualizer(ShapeDrawer):
    """Draw detections and ground truth on one image; every method returns the canvas.

    Args:
        img_rgb: [H, W, 3], RGB in [0, 255].
        metadata: of the data set: ``thing_classes``, ``thing_colors``, ``stuff_classes``, ...
        scale: size of the result relative to the image.
        instance_mode: how to color predictions.
        font_size_scale: factor on the size of labels.
    """

    def __init__(
        self,
        img_rgb: Any,
        metadata: Any = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ) -> None:
        if metadata is None:
            from detectron2.data import MetadataCatalog

            metadata = MetadataCatalog.get("__nonexist__")
        super().__init__(img_rgb, scale, font_size_scale)
        self.metadata = metadata
        self.cpu_device = torch.device("cpu")
        self._instance_mode = instance_mode

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draw detections: ``pred_boxes``, ``scores``, ``pred_classes``, ``pred_masks``, keypoints.

        Args:
            predictions: detections at the size of the image; missing fields are not drawn.
            jittering: in SEGMENTATION mode, vary the colors of a class a little.
        """
        boxes = predictions.pred_boxes if predictions.has("pred_boxes") else None
        scores = predictions.scores if predictions.has("scores") else None
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        labels = _create_text_labels(classes, scores, self.metadata.get("thing_classes", None))
        keypoints = predictions.pred_keypoints if predictions.has("pred_keypoints") else None
        masks = None
        if predictions.has("pred_masks"):
            bitmaps = np.asarray(as_tensor(predictions.pred_masks))
            masks = [GenericMask(m, self.output.height, self.output.width) for m in bitmaps]

        colors, alpha = None, 0.5
        palette = self.metadata.get("thing_colors", None)
        if self._instance_mode == ColorMode.SEGMENTATION and palette and classes is not None:
            own = [np.array(palette[c]) / 255 for c in classes]
            colors = [tuple(self._jitter(c) if jittering else c) for c in own]
            alpha = 0.8
        if self._instance_mode == ColorMode.IMAGE_BW:
            found = None
            if masks is not None:
                found = np.any([m.mask for m in masks], axis=0) if masks else None
            self.output.reset_image(self._create_grayscale_image(found))
            alpha = 0.3
        return self.overlay_instances(
            masks=masks,
            boxes=boxes,
            labels=labels,
            keypoints=keypoints,
            assigned_colors=colors,
            alpha=alpha,
        )

    def draw_sem_seg(
        self, sem_seg: Any, area_threshold: int | None = None, alpha: float = 0.8
    ) -> VisImage:
        """Draw a map [H, W] of class numbers of ``stuff_classes``; other numbers are left out."""
        sem_seg = np.asarray(as_tensor(sem_seg))
        names = self.metadata.get("stuff_classes", None) or []
        palette = self.metadata.get("stuff_colors", None)
        labels, areas = np.unique(sem_seg, return_counts=True)
        for label in labels[np.argsort(-areas)]:
            if label >= len(names):
                continue
            color = np.array(palette[label]) / 255 if palette else random_color(rgb=True, maximum=1)
            self.draw_binary_mask(
                sem_seg == label,
                color=tuple(color),
                edge_color=_OFF_WHITE,
                text=names[label],
                alpha=alpha,
                area_threshold=area_threshold or 0,
            )
        return self.output

    def draw_dataset_dict(self, dic: Mapping[str, Any]) -> VisImage:
        """Draw the ground truth of a data set's record: ``annotations`` and any ``sem_seg``."""
        annos = dic.get("annotations", None)
        if annos:
            masks = None
            if all("segmentation" in a for a in annos):
                masks = [a["segmentation"] for a in annos]
            keypoints = None
            if all("keypoints" in a for a in annos):
                keypoints = np.array([a["keypoints"] for a in annos]).reshape(len(annos), -1, 3)
            boxes = [
                BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)
                if len(a["bbox"]) == 4
                else a["bbox"]
                for a in annos
            ]
            classes = [a["category_id"] for a in annos]
            palette = self.metadata.get("thing_colors", None)
            colors = None
            if self._instance_mode == ColorMode.SEGMENTATION and palette:
                colors = [tuple(self._jitter(np.array(palette[c]) / 255)) for c in classes]
            labels = _create_text_labels(
                classes,
                None,
                self.metadata.get("thing_classes", None),
                [a.get("iscrowd", 0) for a in annos],
            )
            self.overlay_instances(
                labels=labels,
                boxes=np.array(boxes),
                masks=masks,
                keypoints=keypoints,
                assigned_colors=colors,
            )
        sem_seg = dic.get("sem_seg", None)
        if sem_seg is None and "sem_seg_file_name" in dic:
            from PIL import Image

            with PathManager.open(dic["sem_seg_file_name"], "rb") as file:
                sem_seg = np.asarray(Image.open(file), dtype="uint8")
        if sem_seg is not None:
            self.draw_sem_seg(sem_seg, area_threshold=0, alpha=0.5)
        return self.output

    def overlay_instances(
        self,
        *,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Sequence[Any] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw instances, the large ones first.

        Args:
            boxes: ``Boxes`` or [N, 4] xyxy in pixels.
            labels: N texts.
            masks: ``BitMasks``, ``PolygonMasks``, or N of: bool [H, W], RLE dict, list of polygons.
            keypoints: [N, K, 3] (x, y, visibility).
            assigned_colors: N colors that matplotlib takes; random by default.
            alpha: opacity of masks.

        Raises:
            NotImplementedError: rotated boxes [N, 5].
        """
        boxes_N4 = self._convert_boxes(boxes)
        generic = self._convert_masks(masks)
        points_NK3 = None if keypoints is None else np.asarray(as_tensor(keypoints))
        counts = [len(x) for x in (boxes_N4, generic, points_NK3, labels) if x is not None]
        if not counts or counts[0] == 0:
            return self.output
        count = counts[0]
        assert all(c == count for c in counts), f"fields of different length: {counts}"
        colors = assigned_colors
        if colors is None:
            colors = [tuple(random_color(rgb=True, maximum=1)) for _ in range(count)]

        if boxes_N4 is not None and boxes_N4.shape[1] == 5:
            raise NotImplementedError("rotated boxes are not part of this subset of detectron2")
        areas = np.zeros(count)
        if boxes_N4 is not None:
            areas = np.prod(boxes_N4[:, 2:] - boxes_N4[:, :2], axis=1)
        elif generic is not None:
            areas = np.array([m.area() for m in generic])
        for i in np.argsort(-areas):
            if boxes_N4 is not None:
                self.draw_box(boxes_N4[i], edge_color=colors[i])
            if generic is not None:
                self._draw_mask(generic[i], colors[i], alpha)
            if labels is not None:
                box = boxes_N4[i] if boxes_N4 is not None else None
                self._draw_label(labels[i], colors[i], box, generic[i] if generic else None)
        if points_NK3 is not None:
            for points in points_NK3:
                self.draw_and_connect_keypoints(points)
        return self.output

    def draw_and_connect_keypoints(self, keypoints: Any) -> VisImage:
        """Draw keypoints [K, 3] and the lines of the metadata's ``keypoint_connection_rules``."""
        visible: dict[str, tuple[float, float]] = {}
        names = self.metadata.get("keypoint_names", None)
        for index, (x, y, probability) in enumerate(np.asarray(as_tensor(keypoints))):
            if probability > _KEYPOINT_THRESHOLD:
                self.draw_circle((x, y), color=_KEYPOINT_RED)
                if names:
                    visible[names[index]] = (x, y)
        for first, second, color in self.metadata.get("keypoint_connection_rules", None) or []:
            if first in visible and second in visible:
                (x0, y0), (x1, y1) = visible[first], visible[second]
                self.draw_line([x0, x1], [y0, y1], color=tuple(c / 255.0 for c in color))
        return self.output

    def _draw_label(
        self, label: str, color: Any, box: np.ndarray | None, mask: GenericMask | None
    ) -> None:
        """Write a label at the top left of the box, or below small boxes; else inside the mask."""
        text_color = self._change_color_brightness(color, 0.7)
        if box is None:
            if mask is not None and mask.area() > 0:
                self._draw_text_in_mask(mask, label, text_color)
            return
        x0, y0, x1, y1 = (float(v) for v in box)
        position, alignment = (x0, y0), "left"
        area = (y1 - y0) * (x1 - x0)
        small = area < SMALL_OBJECT_AREA * self.output.scale
        if small or y1 - y0 < 40 * self.output.scale:
            position = (x1, y0) if y1 >= self.output.height - 5 else (x0, y1)
        ratio = (y1 - y0) / math.sqrt(self.output.height * self.output.width)
        self.draw_text(
            label,
            position,
            color=text_color,
            horizontal_alignment=alignment,
            font_size=self._font_size(ratio),
        )

    @staticmethod
    def _jitter(color: np.ndarray) -> np.ndarray:
        """Return a color close to the given one."""
        shift = np.random.rand(3)
        shift = shift / np.linalg.norm(shift) * 0.5 / 255 * 20
        return np.clip(color + shift - shift.mean(), 0.0, 1.0)

    def _create_grayscale_image(self, mask: np.ndarray | None = None) -> np.ndarray:
        """Return the image in gray, with colors kept inside the mask [H, W]."""
        gray = self.img.astype("f4").mean(axis=2, keepdims=True).repeat(3, axis=2)
        if mask is not None:
            gray[mask] = self.img[mask]
        return gray

    @staticmethod
    def _convert_boxes(boxes: Any) -> np.ndarray | None:
        if boxes is None:
            return None
        array = np.asarray(as_tensor(boxes), dtype=float)
        return array.reshape(-1, 4) if array.size == 0 else array

    def _convert_masks(self, masks: Any) -> list[GenericMask] | None:
        if masks is None:
            return None
        if isinstance(masks, PolygonMasks):
            masks = masks.polygons
        elif isinstance(masks, (BitMasks, torch.Tensor)):
            masks = np.asarray(as_tensor(masks))
        height, width = self.output.height, self.output.width
        return [m if isinstance(m, GenericMask) else GenericMask(m, height, width) for m in masks]
