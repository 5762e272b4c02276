"""Evaluators and the evaluation loop under detectron2's names."""

from detectron2.evaluation.coco_evaluation import COCOEvaluator
from detectron2.evaluation.evaluator import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
)
from detectron2.evaluation.lvis_evaluation import LVISEvaluator
from detectron2.evaluation.pascal_voc_evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.testing import print_csv_format, verify_results

__all__ = [
    "COCOEvaluator",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "LVISEvaluator",
    "PascalVOCDetectionEvaluator",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
    "verify_results",
]
