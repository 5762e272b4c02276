"""Register BCCD: 364 photographs of blood cells with boxes of three classes."""

import os

from tokendetr.config.registration import register_coco_format
from tokendetr.data.paths import datasets_root

__all__ = ["bccd_root", "register_bccd"]

SPLITS = ("train", "val", "test")


def register_bccd(root: str | None = None) -> None:
    """Register ``bccd_train``, ``bccd_val`` and ``bccd_test``; nothing is read before first use.

    The images of all splits are in ``images``, the annotations in ``train.json``, ``val.json`` and
    ``test.json``, which ``tokendetr convert`` makes from the published Pascal VOC files.

    Args:
        root: folder of the data set; default :func:`bccd_root`.
    """
    root = bccd_root() if root is None else root
    for split in SPLITS:
        register_coco_format(
            f"bccd_{split}", os.path.join(root, f"{split}.json"), os.path.join(root, "images")
        )


def bccd_root() -> str:
    """Return the data set's folder under ``DETECTRON2_DATASETS``, else under ``./datasets``."""
    return str(datasets_root() / "bccd")
