"""Pascal VOC 2007 (20 classes), trained on trainval and tested on test."""

from .voc_detr import dataloader

dataloader.train.dataset.names = "voc_2007_trainval"
dataloader.test.dataset.names = "voc_2007_test"
