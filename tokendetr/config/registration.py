"""Registration of data sets that may be repeated, with the same or other paths."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

__all__ = ["register_coco_format", "repeatable_registration"]

_registered_by_configs: set[str] = set()


@contextmanager
def repeatable_registration() -> Iterator[None]:
    """Let config files that register data sets be loaded again, inside the ``with`` block.

    A program loads a config more than once (to look at it before processes start, say), and
    detectron2 refuses a name that is taken. Here a name that an earlier config registered belongs
    to the one that is being loaded; any other name is refused as ever.
    """
    register = DatasetCatalog.register

    def again(name: str, func: Callable[[], list[dict[str, Any]]]) -> None:
        if name in _registered_by_configs and name in DatasetCatalog:
            _forget(name)
        register(name, func)
        _registered_by_configs.add(name)

    DatasetCatalog.register = again  # type: ignore[method-assign]
    try:
        yield
    finally:
        DatasetCatalog.register = register  # type: ignore[method-assign]


def register_coco_format(name: str, json_file: str, image_root: str) -> None:
    """Make a COCO-format data set known; its files are read when it is used.

    Unlike ``register_coco_instances`` it may be called again: a name follows the paths that it was
    last given, so a config that is loaded twice, or anew with other paths, means what it says.

    Args:
        name: what configs call it.
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
