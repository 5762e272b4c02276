"""A linear model, its batches and its trainer."""

import math

import torch
from detectron2.engine import SimpleTrainer
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn


class Regression(nn.Module):
    """Two losses of a linear model; ``bad_at`` makes the given call return NaN."""

    def __init__(self, bad_at: int = -1) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.calls = 0
        self.bad_at = bad_at

    def forward(self, batch):
        self.calls += 1
        error = self.linear(batch)
        error = error.to(torch.promote_types(error.dtype, torch.float32))
        loss = error.square().mean()
        if self.calls == self.bad_at:
            loss = loss * math.nan
        return {"loss_a": loss, "loss_b": 0.5 * error.abs().mean()}


def batches(n: int = 100) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, generator=generator) for _ in range(n)]


def make_trainer(cls=SimpleTrainer, bad_at: int = -1, **kwargs):
    torch.manual_seed(0)
    model = Regression(bad_at)
    return cls(model, batches(), torch.optim.SGD(model.parameters(), 0.05), **kwargs)


def schedule() -> WarmupParamScheduler:
    steps = MultiStepParamScheduler([1.0, 0.1], milestones=[8], num_updates=12)
    return WarmupParamScheduler(steps, 0.5, 0.25)
