"""Prediction: ``load`` a trained detector by name and call it on images."""

from tokendetr.config.run_folders import run_config
from tokendetr.predict.detections import Detection, Detections
from tokendetr.predict.detector import Detector, load
from tokendetr.predict.predictor import (
    Predictor,
    build_model,
    build_trained_model,
    coco_results,
    dataset_metadata,
    find_images,
    read_rgb,
)

__all__ = [
    "Detection",
    "Detections",
    "Detector",
    "Predictor",
    "build_model",
    "build_trained_model",
    "coco_results",
    "dataset_metadata",
    "find_images",
    "load",
    "read_rgb",
    "run_config",
]
