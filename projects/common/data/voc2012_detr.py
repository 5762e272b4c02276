"""Pascal VOC 2012 (20 classes), trained on train and tested on val: its test set is not public."""

from .voc_detr import dataloader

dataloader.train.dataset.names = "voc_2012_train"
dataloader.test.dataset.names = "voc_2012_val"
