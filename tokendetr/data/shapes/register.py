"""Register ``shapes_train``, ``shapes_val`` and ``shapes_test`` in detectron2's catalogs."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from tokendetr.data.shapes.build import (
    SPLITS,
    ShapesSpec,
    annotation_file,
    ensure_shapes,
    image_folder,
    shapes_root,
)
from tokendetr.data.shapes.scene import CATEGORIES

TEST_SPEC = ShapesSpec(num_train=0, num_val=2000, seed=1)
"""``shapes_test``: images of another seed, for reported figures. ``shapes_val`` is for choosing
options."""


def register_shapes(root: Path | None = None) -> None:
    """Register ``shapes_train``, ``shapes_val`` and ``shapes_test``.

    Their files are generated on first use, the test set's in a folder beside the root. The function
    may be called again; the last root (argument or ``DETECTRON2_DATASETS``) wins.

    Args:
        root: folder of the data set; default :func:`~tokendetr.data.shapes.build.shapes_root`.
    """
    root = Path(os.path.realpath(shapes_root() if root is None else root))
    for split in SPLITS:
        _register(f"shapes_{split}", root, split, None)
    _register("shapes_test", root.with_name(f"{root.name}_test"), "val", TEST_SPEC)


def _register(name: str, root: Path, split: str, spec: ShapesSpec | None) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    json_file = str(annotation_file(root, split))
    if name in DatasetCatalog.list():
        if MetadataCatalog.get(name).get("json_file") == json_file:
            return
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, partial(_load, root, split, name, spec))
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=str(image_folder(root, split)),
        evaluator_type="coco",
        thing_classes=list(CATEGORIES),
        thing_dataset_id_to_contiguous_id={n + 1: n for n in range(len(CATEGORIES))},
        prepare=partial(ensure_shapes, root, spec),
    )


def _load(root: Path, split: str, name: str, spec: ShapesSpec | None) -> list[dict[str, Any]]:
    from detectron2.data.datasets import load_coco_json

    ensure_shapes(root, spec)
    images = str(image_folder(root, split))
    records: list[dict[str, Any]] = load_coco_json(str(annotation_file(root, split)), images, name)
    return records
