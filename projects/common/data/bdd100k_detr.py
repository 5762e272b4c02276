"""BDD100K detection (10 classes) in COCO format, with the augmentations of DETR."""

from tokendetr.data.bdd100k import register_bdd100k

from .coco_detr import dataloader

register_bdd100k()

dataloader.train.dataset.names = "bdd100k_train"
dataloader.test.dataset.names = "bdd100k_val"
