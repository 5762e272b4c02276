"""Axis-aligned boxes and conversions between their formats."""

from collections.abc import Iterator
from enum import IntEnum, unique
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["BoxMode", "Boxes", "pairwise_ioa", "pairwise_iou", "pairwise_point_box_distance"]

if TYPE_CHECKING:
    ArrayLike = Any
    Index = Any
    Tensors = Iterator[Tensor]
else:  # TorchScript knows these types only, and compiles no generator but reads its annotation
    ArrayLike = Index = Tensors = Tensor


@unique
class BoxMode(IntEnum):
    """Formats of boxes."""

    XYXY_ABS = 0
    """(x0, y0, x1, y1) in pixels."""
    XYWH_ABS = 1
    """(x0, y0, w, h) in pixels."""
    XYXY_REL = 2
    """(x0, y0, x1, y1) as fractions of the image; cannot be converted."""
    XYWH_REL = 3
    """(x0, y0, w, h) as fractions of the image; cannot be converted."""
    XYWHA_ABS = 4
    """(xc, yc, w, h, a): rotated, a in degrees counter-clockwise; cannot be converted."""

    @staticmethod
    def convert(box: Any, from_mode: "BoxMode", to_mode: "BoxMode") -> Any:
        """Convert boxes between the formats in pixels.

        Args:
            box: a list or tuple of one box, or an array or tensor [N, 4].
            from_mode: the format of ``box``.
            to_mode: the wanted format.

        Returns:
            The boxes in the container type of ``box``.

        Raises:
            NotImplementedError: rotated boxes.
            AssertionError: a format relative to the image.
        """
        if from_mode == to_mode:
            return box
        single = isinstance(box, (list, tuple))
        if single:
            assert len(box) in (4, 5), f"a box has 4 numbers, or 5 with an angle, not {len(box)}"
            boxes = torch.tensor(box)[None]
        elif isinstance(box, np.ndarray):
            boxes = torch.from_numpy(np.asarray(box)).clone()
        else:
            boxes = box.clone()
        relative = (BoxMode.XYXY_REL, BoxMode.XYWH_REL)
        assert to_mode not in relative and from_mode not in relative, (
            "boxes relative to an image's size cannot be converted without it"
        )
        converted = BoxMode._convert_tensor(boxes, from_mode, to_mode)
        if single:
            return type(box)(converted.flatten().tolist())
        if isinstance(box, np.ndarray):
            return converted.numpy()
        return converted

    @staticmethod
    def _convert_tensor(boxes: Tensor, from_mode: "BoxMode", to_mode: "BoxMode") -> Tensor:
        """Convert [N, 4] boxes in pixels; may change its argument."""
        if from_mode == BoxMode.XYXY_ABS and to_mode == BoxMode.XYWH_ABS:
            boxes[:, 2] -= boxes[:, 0]
            boxes[:, 3] -= boxes[:, 1]
            return boxes
        if from_mode == BoxMode.XYWH_ABS and to_mode == BoxMode.XYXY_ABS:
            boxes[:, 2] += boxes[:, 0]
            boxes[:, 3] += boxes[:, 1]
            return boxes
        raise NotImplementedError(
            f"BoxMode {from_mode} to {to_mode}: rotated boxes are not part of this subset of "
            "detectron2"
        )


class Boxes:
    """N boxes as a float32 tensor [N, 4] of (x0, y0, x1, y1) in pixels.

    Args:
        tensor: anything ``torch.as_tensor`` takes, with 4 as its last size; may be empty.

    Functions that TorchScript compiles make and use boxes, too, except for iterating over them.
    """

    def __init__(self, tensor: ArrayLike) -> None:
        if not isinstance(tensor, Tensor):
            tensor = torch.as_tensor(tensor, dtype=torch.float32, device=torch.device("cpu"))
        else:
            tensor = tensor.to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape((-1, 4)).to(dtype=torch.float32)
        assert tensor.dim() == 2 and tensor.size(-1) == 4, tensor.size()
        self.tensor: Tensor = tensor

    def clone(self) -> "Boxes":
        """Return a copy with its own memory."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device) -> "Boxes":
        """Return the boxes on a device."""
        return Boxes(self.tensor.to(device=device))

    def area(self) -> Tensor:
        """Return the areas [N] in square pixels."""
        box = self.tensor
        return (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])

    def clip(self, box_size: tuple[int, int]) -> None:
        """Limit x to [0, width] and y to [0, height], in place; ``box_size`` is (height, width)."""
        assert torch.isfinite(self.tensor).all(), "boxes are infinite or NaN"
        height, width = box_size
        x = self.tensor[:, 0::2].clamp(min=0, max=width)
        y = self.tensor[:, 1::2].clamp(min=0, max=height)
        self.tensor = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=-1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """Return which boxes [N] are wider and higher than ``threshold`` pixels."""
        box = self.tensor
        return (box[:, 2] - box[:, 0] > threshold) & (box[:, 3] - box[:, 1] > threshold)

    def __getitem__(self, item: Index) -> "Boxes":
        """Select boxes; an int gives one box, still as ``Boxes``."""
        if isinstance(item, int):
            return Boxes(self.tensor[item].view(1, -1))
        selected = self.tensor[item]
        assert selected.dim() == 2, f"{item} selects no list of boxes"
        return Boxes(selected)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """Return which boxes [N] leave (height, width) by less than the threshold in pixels."""
        height, width = box_size
        box = self.tensor
        return (
            (box[..., 0] >= -boundary_threshold)
            & (box[..., 1] >= -boundary_threshold)
            & (box[..., 2] < width + boundary_threshold)
            & (box[..., 3] < height + boundary_threshold)
        )

    def get_centers(self) -> Tensor:
        """Return the centers [N, 2] as (x, y)."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply the coordinates, in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: list["Boxes"]) -> "Boxes":
        """Join several sets of boxes."""
        assert isinstance(boxes_list, (list, tuple))
        if len(boxes_list) == 0:
            return cls(torch.zeros(0, 4))
        assert all([isinstance(box, Boxes) for box in boxes_list])  # noqa: C419 - TorchScript
        return cls(torch.cat([b.tensor for b in boxes_list], dim=0))

    @property
    def device(self) -> torch.device:
        """Device of the tensor."""
        return self.tensor.device

    @torch.jit.unused
    def __iter__(self) -> Tensors:
        """Yield each box as a tensor [4]."""
        yield from self.tensor


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Return the areas [N, M] of the intersections."""
    box1, box2 = boxes1.tensor, boxes2.tensor
    low = torch.maximum(box1[:, None, :2], box2[:, :2])
    high = torch.minimum(box1[:, None, 2:], box2[:, 2:])
    return (high - low).clamp(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Return the intersections over unions [N, M]; 0 for boxes that do not meet."""
    inter = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - inter
    return torch.where(inter > 0, inter / union, torch.zeros_like(inter))


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """Return the intersections over the areas of ``boxes2``, [N, M]."""
    inter = pairwise_intersection(boxes1, boxes2)
    return torch.where(inter > 0, inter / boxes2.area(), torch.zeros_like(inter))


def pairwise_point_box_distance(points: Tensor, boxes: Boxes) -> Tensor:
    """Return the distances [P, N, 4] of points [P, 2] from left, top, right and bottom sides.

    They are positive inside the box.
    """
    x, y = points[:, None].unbind(dim=2)
    x0, y0, x1, y1 = boxes.tensor[None].unbind(dim=2)
    return torch.stack([x - x0, y - y0, x1 - x, y1 - y], dim=2)
