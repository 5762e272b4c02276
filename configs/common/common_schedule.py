"""Schedules of the learning rate multiplier with linear warm-up, by iteration counts."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    MultiStepParamScheduler,
    StepParamScheduler,
    StepWithFixedGammaParamScheduler,
)


def _with_warmup(scheduler, warmup_steps, total_steps, warmup_method, warmup_factor):
    """Go from ``warmup_factor`` to the schedule's own value within ``warmup_steps``."""
    return L(WarmupParamScheduler)(
        scheduler=scheduler,
        warmup_length=warmup_steps / total_steps,
        warmup_method=warmup_method,
        warmup_factor=warmup_factor,
    )


def multistep_lr_scheduler(
    values=(1.0, 0.1),
    warmup_steps=0,
    num_updates=90000,
    milestones=(82500,),
    warmup_method="linear",
    warmup_factor=0.001,
):
    """Change to the next of ``values`` at each milestone; the last one ends without num_updates."""
    scheduler = L(MultiStepParamScheduler)(
        values=list(values), milestones=list(milestones), num_updates=num_updates
    )
    total = milestones[-1] if num_updates is None else num_updates
    return _with_warmup(scheduler, warmup_steps, total, warmup_method, warmup_factor)


def step_lr_scheduler(
    values, warmup_steps, num_updates, warmup_method="linear", warmup_factor=0.001
):
    """Spread ``values`` evenly over ``num_updates``."""
    scheduler = L(StepParamScheduler)(values=values, num_updates=num_updates)
    return _with_warmup(scheduler, warmup_steps, num_updates, warmup_method, warmup_factor)


def step_lr_scheduler_with_fixed_gamma(
    base_value,
    num_decays,
    gamma,
    num_updates,
    warmup_steps,
    warmup_method="linear",
    warmup_factor=0.001,
):
    """Multiply by ``gamma`` ``num_decays`` times, evenly spread over ``num_updates``."""
    scheduler = L(StepWithFixedGammaParamScheduler)(
        base_value=base_value, num_decays=num_decays, gamma=gamma, num_updates=num_updates
    )
    return _with_warmup(scheduler, warmup_steps, num_updates, warmup_method, warmup_factor)
