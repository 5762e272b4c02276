"""Registration of ``shapes_train`` and ``shapes_val`` in detectron2's catalogs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tokendetr.data.shapes.build import (
    SPLITS,
    annotation_file,
    ensure_shapes,
    image_folder,
    shapes_root,
)
from tokendetr.data.shapes.scene import CATEGORIES


def register_shapes(root: Path | None = None) -> None:
    """Make ``shapes_train`` and ``shapes_val`` known; their files are made when first needed.

    Calling it again is harmless; with another root (argument or ``DETECTRON2_DATASETS``) the names
    follow.

    Args:
        root: folder of the data set; default :func:`~tokendetr.data.shapes.build.shapes_root`.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    root = (shapes_root() if root is None else Path(root)).resolve()
    for split in SPLITS:
        name, json_file = f"shapes_{split}", str(annotation_file(root, split))
        if name in DatasetCatalog.list():
            if MetadataCatalog.get(name).get("json_file") == json_file:
                continue
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        DatasetCatalog.register(name, partial(_load, root, split, name))
        MetadataCatalog.get(name).set(
            json_file=json_file,
            image_root=str(image_folder(root, split)),
            evaluator_type="coco",
            thing_classes=list(CATEGORIES),
            thing_dataset_id_to_contiguous_id={n + 1: n for n in range(len(CATEGORIES))},
            prepare=partial(ensure_shapes, root),
        )


def _load(root: Path, split: str, name: str) -> list[dict[str, Any]]:
    from detectron2.data.datasets import load_coco_json

    ensure_shapes(root)
    images = str(image_folder(root, split))
    records: list[dict[str, Any]] = load_coco_json(str(annotation_file(root, split)), images, name)
    return records
