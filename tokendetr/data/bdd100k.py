"""Register BDD100K's detection labels, converted to COCO's format."""

import os

from tokendetr.config.registration import register_coco_format
from tokendetr.data.paths import datasets_root

__all__ = ["SMALL_OBJECTS", "bdd100k_root", "register_bdd100k", "register_bdd_s"]

SMALL_OBJECTS = "det_{split}_small_cocofmt.json"
"""Name of BDD-S's annotations in ``jsons``, written by ``tools/make_bdd_s.py``."""


def register_bdd100k(root: str | None = None) -> None:
    """Register ``bdd100k_train`` and ``bdd100k_val``; nothing is read before first use.

    The layout is that of BDD100K's own tools: images in ``images/100k/train`` and ``val``, and
    annotations in ``jsons/det_train_cocofmt.json`` and ``det_val_cocofmt.json``, made by
    ``python -m bdd100k.label.to_coco -m det -i labels/det_20/det_train.json -o jsons/...``. The
    labels of 2020 have ten classes.

    Args:
        root: folder of the data set; default ``bdd100k`` under ``DETECTRON2_DATASETS``, else under
            ``./datasets``.
    """
    _register("bdd100k", "det_{split}_cocofmt.json", root)


def register_bdd_s(root: str | None = None) -> None:
    """Register ``bdd_s_train`` and ``bdd_s_val``, whose objects cover under a quarter of an image.

    They are subsets of BDD100K; ``tools/make_bdd_s.py`` writes their annotations.

    Args:
        root: as for :func:`register_bdd100k`.

    Source: SPT, arXiv 2410.23608, section 4.1.
    """
    _register("bdd_s", SMALL_OBJECTS, root)


def bdd100k_root() -> str:
    """Return the data set's folder under ``DETECTRON2_DATASETS``, else under ``./datasets``."""
    return str(datasets_root() / "bdd100k")


def _register(name: str, json_name: str, root: str | None) -> None:
    root = bdd100k_root() if root is None else root
    for split in ("train", "val"):
        register_coco_format(
            f"{name}_{split}",
            os.path.join(root, "jsons", json_name.format(split=split)),
            os.path.join(root, "images", "100k", split),
        )
