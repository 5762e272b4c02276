"""Images of different sizes in one padded tensor."""

from typing import Any

import torch
from torch import Tensor
from torch import device as Device  # under a dotted name, TorchScript does not find it
from torch.nn import functional as F

__all__ = ["ImageList"]


class ImageList:
    """A padded batch that keeps the size of every image. TorchScript can compile its use.

    Args:
        tensor: [B, H, W] or [B, C, H, W], with images at the top left.
        image_sizes: (height, width) of each image before padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """Return one image without its padding."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    @torch.jit.unused
    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        """Move or cast the tensor."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> Device:
        """Device of the tensor."""
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: list[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> "ImageList":
        """Pad images at the right and the bottom to a common size.

        Args:
            tensors: images [..., H, W], equal in all but the last two sizes.
            size_divisibility: make height and width multiples of this, if it is more than 1.
            pad_value: value of the padding.
            padding_constraints: ``square_size`` > 0 pads to a square of this side
                (``size_divisibility`` of the dict then replaces the argument).

        Returns:
            The batch.
        """
        assert len(tensors) > 0
        assert isinstance(tensors, (tuple, list))
        for tensor in tensors:
            assert isinstance(tensor, Tensor)
            assert tensor.shape[:-2] == tensors[0].shape[:-2], tensor.shape
        sizes = [(int(t.shape[-2]), int(t.shape[-1])) for t in tensors]
        height = max([size[0] for size in sizes])
        width = max([size[1] for size in sizes])
        square, divisor = 0, size_divisibility
        if padding_constraints is not None:
            square = padding_constraints.get("square_size", 0)
            divisor = padding_constraints.get("size_divisibility", divisor)
        if square > 0:
            if height > square or width > square:
                raise ValueError(f"square_size {square} is smaller than one of the images {sizes}")
            height = width = square
        if divisor > 1:
            height, width = height + -height % divisor, width + -width % divisor
        if len(tensors) == 1:
            padding = [0, width - sizes[0][1], 0, height - sizes[0][0]]
            batch = F.pad(tensors[0], padding, value=pad_value).unsqueeze(0)
        else:
            shape = [len(tensors)] + list(tensors[0].shape[:-2]) + [height, width]
            batch = tensors[0].new_full(shape, pad_value)
            for index, image in enumerate(tensors):
                batch[index, ..., : image.shape[-2], : image.shape[-1]].copy_(image)
        return ImageList(batch.contiguous(), sizes)
