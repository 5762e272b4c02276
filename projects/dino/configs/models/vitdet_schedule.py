"""The learning rate of detectors on ViTDet-L."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig

WARMUP = 250


def schedule(iterations: int) -> DictConfig:
    """Return a schedule with a linear warm-up and a drop to a tenth after four fifths.

    The milestones are those of 50 epochs, whatever the length: a schedule is relative to its last
    milestone.
    """
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[300_000, 375_000]),
        warmup_length=WARMUP / iterations,
        warmup_factor=0.001,
    )
