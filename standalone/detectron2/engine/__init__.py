"""Training loop, hooks, launching and defaults under detectron2's names."""

from detectron2.engine import hooks
from detectron2.engine.defaults import (
    DefaultPredictor,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from detectron2.engine.launch import DEFAULT_TIMEOUT, launch
from detectron2.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

__all__ = [
    "DEFAULT_TIMEOUT",
    "AMPTrainer",
    "DefaultPredictor",
    "HookBase",
    "SimpleTrainer",
    "TrainerBase",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "hooks",
    "launch",
]
