"""Training beyond upstream: exact resume, atomic checkpoints, guards, weights, fast evaluation.

Everything is built on detectron2's public classes, so it works the same with the real package and
with the subset in ``standalone/``.
"""

from tokendetr.train.checkpoint import AtomicCheckpointer, CheckpointWriteError
from tokendetr.train.configuration import ConfigError, apply_overrides, load_config
from tokendetr.train.data_state import SampleError, StreamLoader, build_train_loader
from tokendetr.train.evaluation import Evaluation
from tokendetr.train.fast_coco import FastCOCOEvaluator
from tokendetr.train.launch import launch
from tokendetr.train.trainer import NonFiniteLossError, Trainer
from tokendetr.train.weights import (
    CheckpointError,
    CheckpointMismatchError,
    LoadReport,
    UnsafeCheckpointError,
    load_slim,
    load_weights,
    read_checkpoint,
    save_slim,
)

__all__ = [
    "AtomicCheckpointer",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointWriteError",
    "ConfigError",
    "Evaluation",
    "FastCOCOEvaluator",
    "LoadReport",
    "NonFiniteLossError",
    "SampleError",
    "StreamLoader",
    "Trainer",
    "UnsafeCheckpointError",
    "apply_overrides",
    "build_train_loader",
    "launch",
    "load_config",
    "load_slim",
    "load_weights",
    "read_checkpoint",
    "save_slim",
]
