"""Pascal VOC (20 classes), 2007+2012 (trainval) and 2007 (test), with the augmentations of DETR."""

from detectron2.evaluation import PascalVOCDetectionEvaluator

from .coco_detr import dataloader

dataloader.train.dataset.names = ("voc_2007_trainval", "voc_2012_trainval")
dataloader.test.dataset.names = "voc_2007_test"
dataloader.evaluator._target_ = PascalVOCDetectionEvaluator
del dataloader.evaluator.output_dir  # it writes no files
