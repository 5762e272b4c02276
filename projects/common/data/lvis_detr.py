"""LVIS v1 (1203 classes) with the augmentations of DETR."""

from detectron2.evaluation import LVISEvaluator

from .coco_detr import dataloader

dataloader.train.dataset.names = "lvis_v1_train"
dataloader.test.dataset.names = "lvis_v1_val"
dataloader.evaluator._target_ = LVISEvaluator
