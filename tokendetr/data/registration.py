"""Registration of COCO-format data sets that may be repeated with other paths."""

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

__all__ = ["register_coco_format"]


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
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, {}, json_file, image_root)
