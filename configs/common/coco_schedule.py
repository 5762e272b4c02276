"""Learning rate schedules for COCO at batch size 16, where an epoch has 7500 iterations."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

ITERATIONS_PER_EPOCH = 7500


def _with_warmup(scheduler, warmup_iterations, total_iterations):
    """Linear warm-up from a thousandth, then ``scheduler``."""
    return L(WarmupParamScheduler)(
        scheduler=scheduler,
        warmup_length=warmup_iterations / total_iterations,
        warmup_method="linear",
        warmup_factor=0.001,
    )


def default_X_scheduler(num_X):
    """Schedule "1x", "2x", ...: one x is 90000 iterations, with two drops by ten near the end."""
    total = num_X * 90000
    if num_X <= 2:
        # schedulers are scale-invariant: this also holds for half an x
        milestones = [60000, 80000, 90000]
    else:
        milestones = [total - 60000, total - 20000, total]
    scheduler = L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=milestones)
    return _with_warmup(scheduler, 1000, total)


def default_coco_scheduler(epochs=50, decay_epochs=40, warmup_epochs=0):
    """Drop by ten after ``decay_epochs`` of ``epochs``; the first ``warmup_epochs`` are warm-up."""
    total = epochs * ITERATIONS_PER_EPOCH
    scheduler = L(MultiStepParamScheduler)(
        values=[1.0, 0.1],
        milestones=[decay_epochs * ITERATIONS_PER_EPOCH, total],
    )
    return _with_warmup(scheduler, warmup_epochs * ITERATIONS_PER_EPOCH, total)


lr_multiplier_1x = default_X_scheduler(1)
lr_multiplier_2x = default_X_scheduler(2)
lr_multiplier_3x = default_X_scheduler(3)
lr_multiplier_6x = default_X_scheduler(6)
lr_multiplier_9x = default_X_scheduler(9)

lr_multiplier_50ep = default_coco_scheduler(50, 40, 0)
lr_multiplier_36ep = default_coco_scheduler(36, 30, 0)
lr_multiplier_24ep = default_coco_scheduler(24, 20, 0)
lr_multiplier_12ep = default_coco_scheduler(12, 11, 0)

lr_multiplier_50ep_warmup = default_coco_scheduler(50, 40, 1e-3)
lr_multiplier_12ep_warmup = default_coco_scheduler(12, 11, 1e-3)
