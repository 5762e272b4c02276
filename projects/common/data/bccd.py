"""BCCD (3 classes): photographs of 640 x 480 pixels, read at half their size."""

from tokendetr.data.bccd import register_bccd

from .shapes import dataloader

register_bccd()

dataloader.train.dataset.names = "bccd_train"
dataloader.train.mapper.augmentation[1].short_edge_length = (208, 224, 240, 256, 272)
dataloader.train.mapper.augmentation[1].max_size = 368
dataloader.test.dataset.names = "bccd_val"
dataloader.test.mapper.augmentation[0].short_edge_length = 240
dataloader.test.mapper.augmentation[0].max_size = 320
# One override of the loader's names evaluates on the test set.
dataloader.evaluator.dataset_name = "${dataloader.test.dataset.names}"
