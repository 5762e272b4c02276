"""A data set of your own in COCO format: set the paths below, the rest is as for COCO."""

from detectron2.data.datasets import register_coco_instances

from .coco_detr import dataloader

register_coco_instances("my_dataset_train", {}, "/path/to/train.json", "/path/to/train/images")
register_coco_instances("my_dataset_test", {}, "/path/to/test.json", "/path/to/test/images")

dataloader.train.dataset.names = "my_dataset_train"
dataloader.test.dataset.names = "my_dataset_test"
