"""Training beyond upstream: exact resume, guards against non-finite losses, many processes.

Everything is built on detectron2's public classes, so it works the same with the real package and
with the stand-in.
"""

from tokendetr.train.launch import launch
from tokendetr.train.trainer import Trainer

__all__ = ["Trainer", "launch"]
