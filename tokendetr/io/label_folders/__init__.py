"""Folders of labeled images in the common formats: COCO JSON, Pascal VOC XML, YOLO text."""

from tokendetr.io.label_folders.convert import split_at_random, to_coco
from tokendetr.io.label_folders.parts import LabelFolder, Part
from tokendetr.io.label_folders.recognize import KINDS, recognize

__all__ = ["KINDS", "LabelFolder", "Part", "recognize", "split_at_random", "to_coco"]
