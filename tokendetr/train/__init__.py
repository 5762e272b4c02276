"""Training: exact resume, guards against non-finite losses, and distributed runs.

Everything builds on detectron2's public classes, so it works the same with the real package and
with the stand-in.
"""

from tokendetr.train.launch import launch
from tokendetr.train.trainer import Trainer

__all__ = ["Trainer", "launch"]
