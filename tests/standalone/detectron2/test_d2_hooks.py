"""Hooks of the training loop."""

import json
import logging
import math

import pytest
import torch
from detectron2.engine import (
    default_writers,
    hooks,
)
from torch import nn

from tests.standalone.detectron2.toy_training import make_trainer, schedule


def test_lr_schedule_hook_records_and_steps():
    trainer = make_trainer()
    trainer.register_hooks([hooks.LRScheduler(scheduler=schedule())])
    trainer.train(0, 12)
    rates = [value for value, _ in trainer.storage.histories()["lr"].values()]
    assert len(rates) == 12
    assert rates[0] < 0.05 and rates[5] == pytest.approx(0.05)
    assert rates[-1] == pytest.approx(0.005)


def test_the_group_that_stands_for_the_learning_rate():
    get = hooks.LRScheduler.get_best_param_group_id
    one, two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    three = nn.Parameter(torch.zeros(1))
    groups = [{"params": [one], "lr": 1.0}, {"params": [two, three], "lr": 2.0}]
    assert get(torch.optim.SGD(groups, lr=0.1)) == 1
    single = [{"params": [p], "lr": lr} for p, lr in ((one, 1.0), (two, 3.0), (three, 3.0))]
    assert get(torch.optim.SGD(single, lr=0.1)) == 1


def test_eval_hook_runs_periodically_and_at_the_end_once():
    trainer = make_trainer()
    at = []

    def evaluate():
        at.append(trainer.iter)
        return {"bbox": {"AP": float(len(at)), "AP50": 2}}

    trainer.register_hooks([hooks.EvalHook(4, evaluate)])
    trainer.train(0, 8)
    assert at == [3, 8]
    assert trainer.storage.latest()["bbox/AP"][0] == 2.0
    broken = make_trainer()
    broken.register_hooks([hooks.EvalHook(1, lambda: {"x": "no number"})])
    with pytest.raises(ValueError, match="x.*no number"):
        broken.train(0, 3)


def test_no_evaluation_after_an_error():
    trainer = make_trainer(bad_at=2)
    calls = []
    trainer.register_hooks([hooks.EvalHook(0, lambda: calls.append(1))])
    with pytest.raises(FloatingPointError):
        trainer.train(0, 10)
    assert calls == []


@pytest.mark.parametrize(("mode", "best"), [("max", [0, 2]), ("min", [0, 1, 3])])
def test_best_checkpointer_keeps_the_best(mode, best):
    values = [3.0, 1.0, 5.0, 0.5, math.nan, 4.0]
    saved = []

    class Recorder:
        def save(self, name, **kwargs):
            saved.append((name, kwargs["iteration"]))

    trainer = make_trainer()
    scores = iter(values)
    trainer.register_hooks(
        [
            hooks.EvalHook(1, lambda: {"bbox": {"AP": next(scores)}}),
            hooks.BestCheckpointer(1, Recorder(), "bbox/AP", mode),
        ]
    )
    trainer.train(0, 6)
    assert [iteration for _, iteration in saved] == best
    assert {name for name, _ in saved} == {"model_best"}


def test_writers_log_and_write_metrics(tmp_path, caplog):
    trainer = make_trainer()
    writers = default_writers(str(tmp_path), 10)
    trainer.register_hooks([hooks.IterationTimer(), hooks.PeriodicWriter(writers, period=5)])
    with caplog.at_level(logging.INFO):
        trainer.train(0, 10)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines][:2] == [4, 9]
    assert {"total_loss", "loss_a", "data_time", "time"} <= set(lines[0])
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert "iter: 9" in caplog.text and "total_loss" in caplog.text
    assert "Total training time" in caplog.text


def test_profilers_write_traces(tmp_path):
    trainer = make_trainer()
    trainer.register_hooks(
        [
            hooks.AutogradProfiler(lambda t: t.iter == 1, str(tmp_path), use_cuda=False),
            hooks.TorchMemoryStats(1),
        ]
    )
    trainer.train(0, 3)
    trace = json.loads((tmp_path / "profiler-trace-iter1.json").read_text())
    assert trace


def test_precise_bn_averages_batches():
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=0.1))
    data = [torch.randn(8, 3) + 5 for _ in range(20)]
    hook = hooks.PreciseBN(0, model, data, 20)
    hook.update_stats()
    expected = torch.stack([batch.mean(0) for batch in data]).mean(0)
    torch.testing.assert_close(model[0].running_mean, expected, rtol=1e-4, atol=1e-4)
