"""Fields of the instances of one image."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Instances"]


class Instances:
    """Fields of equal length (boxes, classes, scores, ...) of the instances of an image.

    Fields are set and read as attributes. Indexing selects instances in all fields.

    Args:
        image_size: (height, width) in pixels.
        kwargs: initial fields.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, val)
        else:
            self.set(name, val)

    def __getattr__(self, name: str) -> Any:
        if name == "_fields" or name not in self._fields:
            raise AttributeError(f"Cannot find field '{name}' in the given Instances!")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Set a field; its length must be that of the other fields."""
        length = len(value)
        if len(self._fields):
            assert len(self) == length, (
                f"Adding a field of length {length} to a Instances of length {len(self)}"
            )
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Return True if there is such a field."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Delete a field."""
        del self._fields[name]

    def get(self, name: str) -> Any:
        """Return a field."""
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """Return all fields by name; changing the dict changes the instances."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """Return instances with every field that has a ``to`` method moved or cast."""
        moved = Instances(self._image_size)
        for name, value in self._fields.items():
            moved.set(name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
        return moved

    def __getitem__(self, item: Any) -> "Instances":
        """Select instances by an int, a slice, or an index or mask tensor."""
        if isinstance(item, int):
            if item >= len(self) or item < -len(self):
                raise IndexError(f"index {item} is out of range for {len(self)} instances")
            item = slice(item, None, len(self))
        selected = Instances(self._image_size)
        for name, value in self._fields.items():
            selected.set(name, value[item])
        return selected

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without a field have no length")

    def __iter__(self) -> Any:
        raise NotImplementedError("Instances cannot be iterated: index them")

    @staticmethod
    def cat(instance_lists: Sequence["Instances"]) -> "Instances":
        """Join instances of the same image size and with the same fields."""
        assert all(isinstance(i, Instances) for i in instance_lists)
        assert len(instance_lists) > 0
        if len(instance_lists) == 1:
            return instance_lists[0]
        image_size = instance_lists[0].image_size
        if not isinstance(image_size, Tensor):
            for other in instance_lists[1:]:
                assert other.image_size == image_size
        joined = Instances(image_size)
        for name, first in instance_lists[0]._fields.items():
            values = [instances.get(name) for instances in instance_lists]
            if isinstance(first, Tensor):
                value: Any = torch.cat(values, dim=0)
            elif isinstance(first, list):
                value = list(itertools.chain(*values))
            elif hasattr(type(first), "cat"):
                value = type(first).cat(values)
            else:
                raise ValueError(f"Unsupported type {type(first)} for concatenation")
            joined.set(name, value)
        return joined

    def __str__(self) -> str:
        count = len(self) if self._fields else 0
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        height, width = self._image_size
        return (
            f"Instances(num_instances={count}, image_height={height}, image_width={width}, "
            f"fields=[{fields}])"
        )

    __repr__ = __str__
