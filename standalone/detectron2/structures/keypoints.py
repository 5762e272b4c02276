"""Keypoints of the instances of an image."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["Keypoints"]


class Keypoints:
    """Labeled points of N instances.

    Args:
        keypoints: ``[N, K, 3]``: x, y in continuous image coordinates, and COCO's visibility
            (0 unlabeled, 1 hidden, 2 visible).
    """

    def __init__(self, keypoints: torch.Tensor | np.ndarray | Sequence[Any]) -> None:
        device = keypoints.device if isinstance(keypoints, torch.Tensor) else torch.device("cpu")
        tensor = torch.as_tensor(keypoints, dtype=torch.float32, device=device)
        assert tensor.dim() == 3 and tensor.shape[2] == 3, tensor.shape
        self.tensor = tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def to(self, *args: Any, **kwargs: Any) -> "Keypoints":
        """Move or cast the points, as ``torch.Tensor.to``."""
        return type(self)(self.tensor.to(*args, **kwargs))

    def __getitem__(self, item: int | slice | torch.Tensor) -> "Keypoints":
        """Select instances; an int gives one instance with the first axis kept."""
        return Keypoints(
            self.tensor[item : item + 1] if isinstance(item, int) else self.tensor[item]
        )

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.tensor)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    @staticmethod
    def cat(keypoints_list: Sequence["Keypoints"]) -> "Keypoints":
        """Join several along the instances."""
        assert len(keypoints_list) > 0
        return Keypoints(torch.cat([keypoints.tensor for keypoints in keypoints_list], dim=0))
