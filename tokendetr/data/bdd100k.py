"""Registration of BDD100K's detection labels, converted to COCO's format."""

import os

from tokendetr.data.registration import register_coco_format

__all__ = ["register_bdd100k"]


def register_bdd100k(root: str | None = None) -> None:
    """Make ``bdd100k_train`` and ``bdd100k_val`` known; nothing is read before they are used.

    Files lie as BDD100K's own tools leave them: images in ``images/100k/train`` and ``val``, and
    ``jsons/det_train_cocofmt.json`` and ``det_val_cocofmt.json``, made by
    ``python -m bdd100k.label.to_coco -m det -i labels/det_20/det_train.json -o jsons/...``. The
    labels of 2020 have ten classes.

    Args:
        root: folder of the data set; default ``bdd100k`` under ``DETECTRON2_DATASETS``, else under
            ``./datasets``.
    """
    if root is None:
        datasets = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
        root = os.path.join(datasets, "bdd100k")
    for split in ("train", "val"):
        register_coco_format(
            f"bdd100k_{split}",
            os.path.join(root, "jsons", f"det_{split}_cocofmt.json"),
            os.path.join(root, "images", "100k", split),
        )
