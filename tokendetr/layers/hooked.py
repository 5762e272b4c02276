"""Forward hooks that stay for the time of a ``with`` block."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TypeVar

from torch.utils.hooks import RemovableHandle

__all__ = ["Hooked"]

Context = TypeVar("Context", bound="Hooked")


class Hooked(ABC):
    """Context manager that hooks modules on entry, and removes its hooks on exit."""

    @abstractmethod
    def _hooks(self) -> Iterable[RemovableHandle]:
        """Register the hooks, and return their handles."""

    def __enter__(self: Context) -> Context:
        with ExitStack() as handles:  # removes the first hooks if a later one fails
            for handle in self._hooks():
                handles.enter_context(handle)
            self._handles = handles.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._handles.close()
