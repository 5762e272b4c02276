"""Instance masks as bitmaps and as polygons."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.layers.roi_align import ROIAlign
from torch import Tensor

from .boxes import Boxes

__all__ = ["BitMasks", "PolygonMasks", "polygons_to_bitmask"]


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the area enclosed by a polygon (shoelace formula)."""
    return float(0.5 * np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def polygons_to_bitmask(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Rasterize the union of polygons to a bool array [height, width].

    Each polygon is a flat array x0, y0, x1, y1, ... in pixels.
    """
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)
    encoded = mask_util.frPyObjects(
        [np.asarray(p, dtype=np.float64) for p in polygons], height, width
    )
    return mask_util.decode(mask_util.merge(encoded)).astype(bool)


def _rasterize_in_box(polygons: Sequence[np.ndarray], box: np.ndarray, mask_size: int) -> Tensor:
    """Rasterize polygons, cropped to ``box`` (xyxy), to a bool array [mask_size, mask_size]."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale_x = mask_size / max(width, 0.1)
    scale_y = mask_size / max(height, 0.1)
    cropped = copy.deepcopy([np.asarray(p, dtype=np.float64) for p in polygons])
    for polygon in cropped:
        polygon[0::2] = (polygon[0::2] - box[0]) * scale_x
        polygon[1::2] = (polygon[1::2] - box[1]) * scale_y
    return torch.from_numpy(polygons_to_bitmask(cropped, mask_size, mask_size))


class BitMasks:
    """N masks as a bool tensor [N, H, W]."""

    def __init__(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor):
            tensor = tensor.to(torch.bool)
        else:
            tensor = torch.as_tensor(tensor, dtype=torch.bool, device=torch.device("cpu"))
        assert tensor.dim() == 3, tensor.size()
        self.image_size = tensor.shape[1:]
        self.tensor: Tensor = tensor

    def to(self, *args: Any, **kwargs: Any) -> "BitMasks":
        """Return the masks on another device."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """Device of the tensor."""
        return self.tensor.device

    def __getitem__(self, item: Any) -> "BitMasks":
        """Select masks; an int gives one mask, still as ``BitMasks``."""
        if isinstance(item, int):
            return BitMasks(self.tensor[item].unsqueeze(0))
        selected = self.tensor[item]
        assert selected.dim() == 3, (
            f"{item} selects {tuple(selected.shape)} of the masks, which is not a stack of masks"
        )
        return BitMasks(selected)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self.tensor)})"

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def nonempty(self) -> Tensor:
        """Return which masks [N] have a pixel."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(
        polygon_masks: "PolygonMasks | list[list[np.ndarray]]", height: int, width: int
    ) -> "BitMasks":
        """Rasterize polygons at an image size."""
        if isinstance(polygon_masks, PolygonMasks):
            polygon_masks = polygon_masks.polygons
        masks = [polygons_to_bitmask(polygons, height, width) for polygons in polygon_masks]
        if len(masks) == 0:
            return BitMasks(torch.zeros(0, height, width, dtype=torch.bool))
        return BitMasks(torch.from_numpy(np.stack(masks)))

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Crop each mask by its box [N, 4] and resize it by RoIAlign.

        Returns:
            bool [N, mask_size, mask_size].
        """
        assert len(boxes) == len(self), f"{len(boxes)} != {len(self)}"
        device = self.tensor.device
        index = torch.arange(len(boxes), device=device).to(boxes.dtype)[:, None]
        rois = torch.cat([index, boxes.to(device)], dim=1)
        pooled = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)(
            self.tensor[:, None].to(torch.float32), rois
        )
        return pooled[:, 0] >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """Return the tight boxes around the masks, zeros for empty ones."""
        boxes = torch.zeros(len(self), 4, dtype=torch.float32, device=self.device)
        if self.tensor.numel() == 0:
            return Boxes(boxes)
        columns, rows = self.tensor.any(dim=1), self.tensor.any(dim=2)
        for axis, occupied in enumerate((columns, rows)):
            first = occupied.int().argmax(dim=1)
            last = occupied.shape[1] - occupied.flip(1).int().argmax(dim=1)
            boxes[:, axis], boxes[:, axis + 2] = first.float(), last.float()
        return Boxes(boxes * self.nonempty()[:, None])

    @staticmethod
    def cat(bitmasks_list: Sequence["BitMasks"]) -> "BitMasks":
        """Join masks of the same size."""
        assert isinstance(bitmasks_list, (list, tuple))
        assert len(bitmasks_list) > 0
        assert all(isinstance(bitmask, BitMasks) for bitmask in bitmasks_list)
        return BitMasks(torch.cat([bm.tensor for bm in bitmasks_list], dim=0))


class PolygonMasks:
    """N masks, each a list of polygons: flat arrays x0, y0, x1, y1, ... in pixels."""

    def __init__(self, polygons: Sequence[Sequence[Any]]) -> None:
        if not isinstance(polygons, list):
            raise ValueError(
                f"PolygonMasks takes a list of lists of polygons, not a {type(polygons)}"
            )
        self.polygons: list[list[np.ndarray]] = [self._check(instance) for instance in polygons]

    @staticmethod
    def _check(instance: Any) -> list[np.ndarray]:
        if not isinstance(instance, list):
            raise ValueError(f"an instance has a list of polygons, not a {type(instance)}")
        arrays = []
        for polygon in instance:
            if isinstance(polygon, Tensor):
                polygon = polygon.cpu().numpy()
            array = np.asarray(polygon).astype("float64")
            if len(array) % 2 != 0 or len(array) < 6:
                raise ValueError(
                    f"{len(array)} coordinates are not a polygon, which has at least 6, in pairs"
                )
            arrays.append(array)
        return arrays

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        """Return the masks themselves: they live on the CPU."""
        return self

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    def get_bounding_boxes(self) -> Boxes:
        """Return the tight boxes around the polygons, zeros for instances without any."""
        boxes = torch.zeros(len(self.polygons), 4, dtype=torch.float32)
        for index, polygons in enumerate(self.polygons):
            if polygons:
                points = torch.from_numpy(np.concatenate(polygons)).view(-1, 2).float()
                boxes[index, :2] = points.min(dim=0).values
                boxes[index, 2:] = points.max(dim=0).values
        return Boxes(boxes)

    def nonempty(self) -> Tensor:
        """Return which masks [N] have a polygon."""
        return torch.tensor([len(polygons) > 0 for polygons in self.polygons], dtype=torch.bool)

    def __getitem__(self, item: Any) -> "PolygonMasks":
        """Select masks by an int, a slice, a list of ints, or an index or mask tensor."""
        if isinstance(item, int):
            return PolygonMasks([self.polygons[item]])
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        if isinstance(item, (Tensor, np.ndarray)):
            item = torch.as_tensor(item)
            assert item.dim() == 1, item.shape
            item = item.nonzero().squeeze(1).tolist() if item.dtype == torch.bool else item.tolist()
        return PolygonMasks([self.polygons[i] for i in item])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return iter(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self.polygons)})"

    def __len__(self) -> int:
        return len(self.polygons)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Crop each mask by its box [N, 4] and rasterize it.

        Returns:
            bool [N, mask_size, mask_size] on the boxes' device.
        """
        assert len(boxes) == len(self), f"{len(boxes)} != {len(self)}"
        if len(boxes) == 0:
            return torch.zeros(0, mask_size, mask_size, dtype=torch.bool, device=boxes.device)
        masks = [
            _rasterize_in_box(polygons, box, mask_size)
            for polygons, box in zip(self.polygons, boxes.cpu().numpy(), strict=True)
        ]
        return torch.stack(masks).to(boxes.device)

    def area(self) -> Tensor:
        """Return the areas [N] in square pixels; overlaps of an instance's polygons count twice."""
        areas = [
            sum(polygon_area(polygon[0::2], polygon[1::2]) for polygon in polygons)
            for polygons in self.polygons
        ]
        return torch.tensor(areas, dtype=torch.float32)

    @staticmethod
    def cat(polymasks_list: Sequence["PolygonMasks"]) -> "PolygonMasks":
        """Join masks."""
        assert isinstance(polymasks_list, (list, tuple))
        assert len(polymasks_list) > 0
        assert all(isinstance(masks, PolygonMasks) for masks in polymasks_list)
        return PolygonMasks(list(itertools.chain.from_iterable(m.polygons for m in polymasks_list)))
