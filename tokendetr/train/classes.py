"""Compare the classes that a checkpoint was trained on with those of the data."""

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from tokendetr.data.validate import class_fault, dataset_names
from tokendetr.errors import CheckpointMismatchError

__all__ = ["loaded_classes", "refuse_moved_classes", "warn_of_other_classes"]

logger = logging.getLogger("tokendetr.train")


def loaded_classes(cfg: Any, *, tested: bool) -> list[str]:
    """Return the class names, in order, of the data set that a loader has read; [] if it has none.

    Args:
        cfg: the whole config.
        tested: of ``dataloader.test``; else of ``dataloader.train``.
    """
    for name, is_test in dataset_names(cfg):
        if is_test == tested and name in DatasetCatalog:
            return list(map(str, MetadataCatalog.get(name).get("thing_classes", None) or ()))
    return []


def refuse_moved_classes(path: str, saved: Any, names: Sequence[str]) -> None:
    """Refuse to resume with classes that have other numbers than before; new names are no matter.

    Args:
        path: the checkpoint.
        saved: the classes that it was trained on; anything else than a list is ignored.
        names: those of the data now.

    Raises:
        CheckpointMismatchError: a class has another number.
    """
    if not isinstance(saved, list):
        return
    if any(new != old and new in saved for old, new in zip(saved, names, strict=False)):
        raise CheckpointMismatchError(
            f"{class_fault(path, saved, 'the training data', names)}. Or start a new run in "
            "another train.output_dir"
        )


def warn_of_other_classes(path: str, saved: Any, names: Sequence[str]) -> None:
    """Warn that an evaluation compares classes with others, by their numbers.

    Args:
        path, saved, names: see :func:`refuse_moved_classes`.
    """
    if not isinstance(saved, list) or not names:
        return
    if fault := class_fault(path, saved, "the test data", names):
        logger.warning("Classes are compared by their numbers, but %s", fault)
