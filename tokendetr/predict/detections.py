"""Detections of one image, with conversions to other formats and a drawing.

Shapes: N detection, H, W image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.structures import Instances
from numpy.typing import NDArray
from PIL import Image

from tokendetr.io.images import save_image
from tokendetr.visualization.boxes import draw_boxes, found_boxes, legible_scale

__all__ = ["Detection", "Detections"]


@dataclass(frozen=True)
class Detection:
    """One detected object.

    Attributes:
        label: name of its class.
        score: in [0, 1].
        box_xyxy_px: left, top, right, bottom in pixels of the image.
        class_index: index of its class, from 0.
    """

    label: str
    score: float
    box_xyxy_px: tuple[float, float, float, float]
    class_index: int


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first.

    Attributes:
        instances: detectron2's ``Instances`` on the CPU: ``pred_boxes`` (xyxy, pixels), ``scores``,
            ``pred_classes``.
        names: class names.
        category_ids: the data set's category id of each class.
        image_HWC: the image, uint8 RGB.
        source: where the image came from: a path, or a description of the object.
    """

    instances: Instances
    names: Sequence[str]
    category_ids: Sequence[int | str]
    image_HWC: NDArray[np.uint8] = field(repr=False)
    source: str = ""

    def __len__(self) -> int:
        """Number of detections N."""
        return len(self.instances)

    def __iter__(self) -> Iterator[Detection]:
        """Iterate over the detections, best first."""
        fields = self.instances
        for box, score, index in zip(
            fields.pred_boxes.tensor.tolist(),
            fields.scores.tolist(),
            fields.pred_classes.tolist(),
            strict=True,
        ):
            yield Detection(self.names[index], score, tuple(box), index)

    def __repr__(self) -> str:
        """Summarize the number of objects of each class."""
        counts: dict[str, int] = {}
        for detection in self:
            counts[detection.label] = counts.get(detection.label, 0) + 1
        found = ", ".join(f"{count} {label}" for label, count in counts.items()) or "nothing"
        return f"Detections({self.source or 'image'}: {found})"

    def records(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """Return records in COCO's result format (``bbox`` is xywh in pixels) with class names.

        Args:
            image_id: id of the image; None omits it.
        """
        return [
            {
                **({} if image_id is None else {"image_id": image_id}),
                "category_id": self.category_ids[d.class_index],
                "category_name": d.label,
                "bbox": [
                    d.box_xyxy_px[0],
                    d.box_xyxy_px[1],
                    d.box_xyxy_px[2] - d.box_xyxy_px[0],
                    d.box_xyxy_px[3] - d.box_xyxy_px[1],
                ],
                "score": d.score,
            }
            for d in self
        ]

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections``.

        Raises:
            ImportError: the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                "to_supervision() needs supervision: pip install supervision"
            ) from error
        classes = self.instances.pred_classes.numpy()
        return supervision.Detections(
            xyxy=self.instances.pred_boxes.tensor.numpy().astype(np.float32),
            confidence=self.instances.scores.numpy().astype(np.float32),
            class_id=classes.astype(int),
            data={"class_name": np.array([self.names[index] for index in classes])},
        )

    def plot(self, path: str | None = None, *, scale: float | None = None) -> Image.Image:
        """Draw the detections over the image, in one color per class and without label overlap.

        Args:
            path: file to save the drawing to; None saves nothing.
            scale: the drawing's size divided by the image's; None enlarges small images enough to
                read the labels.

        Returns:
            The drawing.
        """
        boxes = found_boxes(self.instances, self.names)
        enlarged = legible_scale(self.image_HWC) if scale is None else scale
        drawing = draw_boxes(self.image_HWC, boxes, scale=enlarged)
        if path is not None:
            save_image(drawing, path)
        return drawing
