"""Register data sets repeatedly, with the same or other paths."""

import threading
import traceback
from typing import Any

from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import register_coco_instances

__all__ = ["load_repeatably", "register_coco_format"]

_loading = threading.RLock()  # a config may load another one by name
_registered_by_configs: set[str] = set()


def load_repeatably(file: str) -> Any:
    """Load a config file that may register data sets which an earlier load registered.

    A program loads a config more than once, for example to inspect it before processes start, and
    ``DatasetCatalog`` refuses a name that is taken. If an earlier config registered that name, it
    is removed and the file is loaded again, until no name is refused. Names that were registered
    elsewhere are still refused. ``python -O`` removes the assertions by which detectron2 refuses;
    then the name has new records but its old metadata, and is treated in the same way. What cannot
    be seen there is detectron2's ``register_coco_instances``, which keeps the earlier records.

    Args:
        file: path or URL of a ``.py`` config.

    Raises:
        AssertionError: the file registers a name that was registered elsewhere, or one name twice.
    """
    added: set[str] = set()  # by this load, before it was refused a name
    refused: set[str] = set()
    with _loading:
        owned = frozenset(_registered_by_configs)
        while True:
            before = dict(DatasetCatalog)
            try:
                loaded = LazyConfig.load(file)
                replaced = {n for n in owned & set(before) if _is_replaced(n, before[n])} - refused
                if not replaced:
                    return loaded
                refused |= replaced
            except AssertionError as error:
                name = _refused_name(error)
                if name is None or name in refused or name not in owned:
                    raise
                refused.add(name)
            finally:
                added |= set(DatasetCatalog) - set(before)
                _registered_by_configs.update(added)
            for known in (refused | added) & set(DatasetCatalog):
                _forget(known)


def _is_replaced(name: str, records: Any) -> bool:
    """Return whether a name stands for other records than before."""
    return name in DatasetCatalog and DatasetCatalog[name] is not records


def _refused_name(error: AssertionError) -> str | None:
    """Return the name that the catalogs refused; None for another's error.

    ``DatasetCatalog.register`` refuses a name that is taken, and ``Metadata`` other values for it:
    detectron2's ``register_coco_instances`` sets these also for a name that it does not register
    again. The error itself has only a message, so the name is read from the frame that raised it.
    """
    register = type(DatasetCatalog).register.__code__
    change = getattr(Metadata.__setattr__, "__code__", None)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is register:
            return str(frame.f_locals["name"])
        if frame.f_code is change:
            return str(frame.f_locals["self"].name)
    return None


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
