"""Registration of the well-known data sets under ``$DETECTRON2_DATASETS`` (default ``./datasets``).

Only names are registered here; nothing is read before a data set is used.
"""

import os

from detectron2.data.catalog import MetadataCatalog
from detectron2.data.datasets.builtin_meta import _coco_instances_meta, _coco_person_keypoints_meta
from detectron2.data.datasets.coco import register_coco_instances
from detectron2.data.datasets.lvis import register_lvis_instances
from detectron2.data.datasets.pascal_voc import register_pascal_voc

__all__ = ["register_all_coco", "register_all_lvis", "register_all_pascal_voc"]

# name -> (image folder, annotation file), both under coco/.
_COCO_SPLITS = {
    "coco_2014_train": ("train2014", "instances_train2014.json"),
    "coco_2014_val": ("val2014", "instances_val2014.json"),
    "coco_2014_minival": ("val2014", "instances_minival2014.json"),
    "coco_2014_valminusminival": ("val2014", "instances_valminusminival2014.json"),
    "coco_2017_train": ("train2017", "instances_train2017.json"),
    "coco_2017_val": ("val2017", "instances_val2017.json"),
    "coco_2017_test": ("test2017", "image_info_test2017.json"),
    "coco_2017_test-dev": ("test2017", "image_info_test-dev2017.json"),
    "coco_2017_val_100": ("val2017", "instances_val2017_100.json"),
}
_COCO_PERSON_SPLITS = {
    "keypoints_coco_2014_train": ("train2014", "person_keypoints_train2014.json"),
    "keypoints_coco_2014_val": ("val2014", "person_keypoints_val2014.json"),
    "keypoints_coco_2017_train": ("train2017", "person_keypoints_train2017.json"),
    "keypoints_coco_2017_val": ("val2017", "person_keypoints_val2017.json"),
    "keypoints_coco_2017_val_100": ("val2017", "person_keypoints_val2017_100.json"),
}
# name -> annotation file under lvis/; images are COCO's.
_LVIS_SPLITS = {
    "lvis_v1_train": "lvis_v1_train.json",
    "lvis_v1_val": "lvis_v1_val.json",
    "lvis_v1_test_dev": "lvis_v1_image_info_test_dev.json",
    "lvis_v1_test_challenge": "lvis_v1_image_info_test_challenge.json",
    "lvis_v0.5_train": "lvis_v0.5_train.json",
    "lvis_v0.5_val": "lvis_v0.5_val.json",
    "lvis_v0.5_val_rand_100": "lvis_v0.5_val_rand_100.json",
    "lvis_v0.5_test": "lvis_v0.5_image_info_test.json",
}
_VOC_SPLITS = {2007: ("trainval", "train", "val", "test"), 2012: ("trainval", "train", "val")}


def register_all_coco(root: str) -> None:
    """Register COCO detection and person keypoints; files are in ``root/coco``."""
    groups = (
        (_COCO_SPLITS, _coco_instances_meta()),
        (_COCO_PERSON_SPLITS, _coco_person_keypoints_meta()),
    )
    for splits, metadata in groups:
        for name, (folder, json_name) in splits.items():
            json_file = os.path.join(root, "coco", "annotations", json_name)
            register_coco_instances(name, metadata, json_file, os.path.join(root, "coco", folder))


def register_all_lvis(root: str) -> None:
    """Register LVIS; annotations are in ``root/lvis``, images in ``root/coco``."""
    for name, json_name in _LVIS_SPLITS.items():
        json_file = os.path.join(root, "lvis", json_name)
        register_lvis_instances(name, {}, json_file, os.path.join(root, "coco"))


def register_all_pascal_voc(root: str) -> None:
    """Register PASCAL VOC; files are in ``root/VOC2007`` and ``root/VOC2012``."""
    for year, splits in _VOC_SPLITS.items():
        for split in splits:
            name = f"voc_{year}_{split}"
            register_pascal_voc(name, os.path.join(root, f"VOC{year}"), split, year)
            MetadataCatalog.get(name).evaluator_type = "pascal_voc"


_ROOT = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_coco(_ROOT)
register_all_lvis(_ROOT)
register_all_pascal_voc(_ROOT)
