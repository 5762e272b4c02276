"""Register data sets repeatedly, with the same or other paths, and resolvers of OmegaConf."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import register_coco_instances
from omegaconf import OmegaConf

__all__ = ["load_repeatably", "register_coco_format"]

_loading = threading.RLock()  # a config may load another one by name
_registered_by_configs: set[str] = set()
_resolvers_of_configs: set[str] = set()
WAY_OUT = "register your data set under another name"
_Entry = tuple[Callable[[], Any], Metadata]  # of the two catalogs


class NameTakenError(AssertionError):
    """A name stands for another data set already."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def load_repeatably(file: str) -> Any:
    """Load a config file that may register data sets which an earlier load registered.

    A program loads a config more than once, for example to inspect it before processes start, and
    the catalogs refuse a name that is taken. If an earlier config registered that name, it is set
    aside and the file is loaded again, until no name is refused. Names that were registered
    elsewhere are still refused. What was set aside comes back if the file fails, or does not
    register it again: that of a module, for example, which Python imports only once. Resolvers of
    OmegaConf that a config registered are replaced.

    Args:
        file: path or URL of a ``.py`` config.

    Raises:
        AssertionError: the file registers a name that was registered elsewhere, or one name twice.
    """
    aside: dict[str, _Entry] = {}
    with _loading, _taken_names_refused(), _resolvers_replaced():
        try:
            loaded = _load(file, aside)
        except BaseException:
            _put_back(aside)
            raise
        _put_back({name: entry for name, entry in aside.items() if name not in DatasetCatalog})
        return loaded


def _load(file: str, aside: dict[str, _Entry]) -> Any:
    """Load a config file until no name is refused; ``aside`` gets the names that were taken."""
    of_configs = frozenset(_registered_by_configs)
    added: set[str] = set()  # by this load, before it was refused a name
    while True:
        before = set(DatasetCatalog)
        try:
            return LazyConfig.load(file)
        except NameTakenError as error:
            if error.name in aside or error.name not in of_configs:
                raise
            refused = error.name
        finally:
            added |= set(DatasetCatalog) - before
            _registered_by_configs.update(added)
        for name in {refused, *added} & set(DatasetCatalog):
            aside[name] = (DatasetCatalog[name], MetadataCatalog.get(name))
            _forget(name)


@contextmanager
def _taken_names_refused() -> Iterator[None]:
    """Let the catalogs refuse a name that is taken by an error that knows it.

    detectron2's own errors have only a message, ``python -O`` removes them, and its
    ``register_coco_instances`` does not register a name again, but sets its metadata.
    """
    catalog: Any = type(DatasetCatalog)
    metadata: Any = Metadata
    register, change = catalog.register, metadata.__setattr__

    def register_new(self: Any, name: str, func: Any) -> None:
        if name in self:
            raise NameTakenError(name, f"Dataset '{name}' is already registered: {WAY_OUT}")
        register(self, name, func)

    def set_once(self: Any, key: str, value: Any) -> None:
        known = self.get(key, value)
        if known != value:
            message = f"{key!r} of '{self.name}' is {known!r} and cannot be set to {value!r}"
            raise NameTakenError(self.name, f"{message}: {WAY_OUT}")
        change(self, key, value)

    catalog.register, metadata.__setattr__ = register_new, set_once
    try:
        yield
    finally:
        catalog.register, metadata.__setattr__ = register, change


@contextmanager
def _resolvers_replaced() -> Iterator[None]:
    """Let configs register a resolver of OmegaConf again that an earlier load registered."""
    omegaconf: Any = OmegaConf
    register = OmegaConf.register_new_resolver

    def register_again(name: str, resolver: Any, *, replace: bool = False, **options: Any) -> None:
        register(name, resolver, replace=replace or name in _resolvers_of_configs, **options)
        _resolvers_of_configs.add(name)

    omegaconf.register_new_resolver = staticmethod(register_again)
    try:
        yield
    finally:
        omegaconf.register_new_resolver = staticmethod(register)


def _put_back(entries: dict[str, _Entry]) -> None:
    for name, (records, metadata) in entries.items():
        DatasetCatalog[name], MetadataCatalog[name] = records, metadata


def register_coco_format(name: str, json_file: str, image_root: str) -> None:
    """Register a COCO-format data set; its files are read on first use.

    Unlike ``register_coco_instances`` it may be called again: the last paths win, so a config can
    be loaded twice, or again with other paths.

    Args:
        name: name of the data set in configs.
        json_file: its annotations.
        image_root: folder of its images.
    """
    if name in DatasetCatalog:
        metadata = MetadataCatalog.get(name)
        known = metadata.get("json_file", None), metadata.get("image_root", None)
        if known == (json_file, image_root):
            return
        _forget(name)
    register_coco_instances(name, {}, json_file, image_root)


def _forget(name: str) -> None:
    DatasetCatalog.remove(name)
    if name in MetadataCatalog:
        MetadataCatalog.remove(name)
