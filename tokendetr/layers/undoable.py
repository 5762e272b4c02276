"""Handles of changes to a model that can be undone."""

from abc import ABC, abstractmethod
from typing import TypeVar

__all__ = ["Undoable"]

Handle = TypeVar("Handle", bound="Undoable")


class Undoable(ABC):
    """Handle of a change to a model: :meth:`undo`, or the end of a ``with`` block, reverts it."""

    @abstractmethod
    def undo(self) -> None:
        """Revert the change; further calls do nothing."""

    def __enter__(self: Handle) -> Handle:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.undo()
