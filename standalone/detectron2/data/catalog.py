"""The global catalogs of data sets: loading functions and metadata by name."""

import builtins
import logging
import types
from collections import UserDict
from collections.abc import Callable
from typing import Any

from detectron2.utils.logger import log_first_n

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]

# Old attribute names that still resolve, with one warning.
_OLD_METADATA_NAMES = {
    "class_names": "thing_classes",
    "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
    "stuff_class_names": "stuff_classes",
}


class _DatasetCatalog(UserDict):
    """Mapping from a data set's name to a function that returns its list of records."""

    def register(self, name: str, func: Callable[[], list[dict[str, Any]]]) -> None:
        """Add a data set.

        Args:
            name: the name used in configs, such as ``"coco_2017_train"``.
            func: returns the records; every call must return the same ones in the same order.

        Raises:
            AssertionError: ``func`` is not callable, or ``name`` is already registered.
        """
        # Not by assert statements, which `python -O` removes.
        if not callable(func):
            raise AssertionError(
                f"DatasetCatalog.register('{name}', ...) needs a function that returns the "
                f"records, got {type(func).__name__}."
            )
        if name in self:
            raise AssertionError(f"Dataset '{name}' is already registered!")
        self[name] = func

    def get(self, name: str) -> list[dict[str, Any]]:  # type: ignore[override]
        """Load the records of a registered data set.

        Raises:
            KeyError: nothing is registered under ``name``.
        """
        if name not in self:
            available = ", ".join(self.data)
            raise KeyError(f"no data set '{name}' is registered; there are: {available}")
        return self[name]()

    def list(self) -> builtins.list[str]:
        """Return the names of all registered data sets."""
        return [*self.data]

    def remove(self, name: str) -> None:
        """Forget a data set (its metadata stays)."""
        del self[name]

    def __str__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self.data)})"

    __repr__ = __str__


class Metadata(types.SimpleNamespace):
    """Facts about one data set, as attributes that can be set once.

    Setting an attribute again is allowed only with an equal value, so that two parts of a program
    cannot silently disagree about, say, the class names.
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        if key in _OLD_METADATA_NAMES:
            return getattr(self, _resolve_old_name(key))
        known = (
            ", ".join(self.__dict__) if len(self.__dict__) > 1 else "none, the metadata is empty"
        )
        raise AttributeError(f"The metadata of '{self.name}' has no '{key}'; it has {known}.")

    def __setattr__(self, key: str, value: Any) -> None:
        if key in _OLD_METADATA_NAMES:
            key = _resolve_old_name(key)
        if key in self.__dict__:
            old = self.__dict__[key]
            if old != value:
                raise AssertionError(
                    f"Attribute '{key}' in the metadata of '{self.name}' cannot be set to a "
                    f"different value!\n{old} != {value}"
                )
            return
        super().__setattr__(key, value)

    def as_dict(self) -> dict[str, Any]:
        """Return a shallow copy of all attributes."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several attributes; returns itself."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Return the attribute's value, or ``default`` if it does not exist."""
        return getattr(self, key, default)


def _resolve_old_name(key: str) -> str:
    new = _OLD_METADATA_NAMES[key]
    log_first_n(logging.WARNING, f"Metadata '{key}' was renamed to '{new}'!", n=10)
    return new


class _MetadataCatalog(UserDict):
    """Mapping from a data set's name to its :class:`Metadata`, created empty on first use."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """Return the metadata of ``name``, the same object on every call."""
        if not name:
            raise AssertionError("A dataset name must not be empty.")
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> builtins.list[str]:
        """Return the names of all data sets that have metadata."""
        return [*self.data]

    def remove(self, name: str) -> None:
        """Forget the metadata of a data set."""
        del self[name]

    def __str__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self.data)})"

    __repr__ = __str__


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
