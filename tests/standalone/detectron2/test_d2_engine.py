"""The training loop, its hooks, setup and launching."""
# Over 350 lines: one file per stand-in package.

import argparse
import json
import logging
import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import (
    AMPTrainer,
    DefaultPredictor,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
    launch,
)
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.solver import WarmupParamScheduler
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import OmegaConf
from torch import nn

from tests.patience import patience
from tests.processes import report_threads_at_exit
from tests.standalone.detectron2.coco_files import random_coco


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


def test_hooks_run_in_order():
    events = []

    class Note(HookBase):
        def before_train(self):
            events.append("before_train")

        def before_step(self):
            events.append(f"before_step {self.trainer.iter}")

        def after_backward(self):
            assert self.trainer.model.linear.weight.grad is not None
            events.append("after_backward")

        def after_step(self):
            events.append(f"after_step {self.trainer.storage.iter}")

        def after_train(self):
            events.append(f"after_train {self.trainer.iter}")

    trainer = make_trainer()
    trainer.register_hooks([Note(), None])
    trainer.train(3, 5)
    assert events == [
        "before_train",
        *("before_step 3", "after_backward", "after_step 3"),
        *("before_step 4", "after_backward", "after_step 4"),
        "after_train 5",
    ]


def test_simple_trainer_equals_a_hand_written_loop():
    trainer = make_trainer()
    trainer.train(0, 20)
    torch.manual_seed(0)
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for batch in batches()[:20]:
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()
    assert torch.equal(trainer.model.linear.weight, model.linear.weight)
    history = trainer.storage.histories()
    assert len(history["total_loss"].values()) == 20
    total, _ = trainer.storage.latest()["total_loss"]
    parts = [trainer.storage.latest()[name][0] for name in ("loss_a", "loss_b")]
    assert total == pytest.approx(sum(parts), rel=1e-6)
    assert "data_time" in history


def test_options_of_the_trainer_do_not_change_the_weights():
    reference = make_trainer()
    reference.train(0, 12)
    for options in (
        {"gather_metric_period": 5},
        {"zero_grad_before_forward": True},
        {"async_write_metrics": True},
    ):
        trainer = make_trainer(**options)
        trainer.train(0, 12)
        assert torch.equal(trainer.model.linear.weight, reference.model.linear.weight)
        history = trainer.storage.histories()["total_loss"].values()
        iterations = [iteration for _, iteration in history]
        expected = [4, 9] if "gather_metric_period" in options else list(range(12))
        assert iterations == expected


@pytest.mark.parametrize("cls", [SimpleTrainer, AMPTrainer])
def test_a_non_finite_loss_stops_before_the_update(cls):
    options = {"precision": torch.bfloat16} if cls is AMPTrainer else {}
    trainer = make_trainer(cls, bad_at=4, **options)
    weights = []
    trainer.register_hooks(
        [
            hooks.CallbackHook(
                before_step=lambda t: weights.append(t.model.linear.weight.detach().clone())
            )
        ]
    )
    with pytest.raises(FloatingPointError, match=r"iteration=3!(.|\n)*loss_a"):
        trainer.train(0, 10)
    assert torch.equal(trainer.model.linear.weight, weights[-1])
    assert trainer.iter == 3


def test_a_model_in_eval_mode_is_noticed():
    trainer = make_trainer()
    trainer.model.eval()
    with pytest.raises(AssertionError, match="eval mode"):
        trainer.train(0, 1)


def test_amp_in_float32_is_plain_training_and_bfloat16_is_close():
    reference = make_trainer()
    reference.train(0, 10)
    exact = make_trainer(AMPTrainer, precision=torch.float32)
    exact.train(0, 10)
    assert torch.equal(exact.model.linear.weight, reference.model.linear.weight)
    low = make_trainer(AMPTrainer, precision=torch.bfloat16, log_grad_scaler=True)
    low.train(0, 10)
    difference = (low.model.linear.weight - reference.model.linear.weight).abs().max()
    assert 0 < difference < 0.02
    assert "[metric]grad_scaler" in low.storage.histories()


def schedule() -> WarmupParamScheduler:
    steps = MultiStepParamScheduler([1.0, 0.1], milestones=[8], num_updates=12)
    return WarmupParamScheduler(steps, 0.5, 0.25)


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


def test_resume_restores_optimizer_schedule_and_iteration(tmp_path):
    def build(max_iter_hooks: bool = True):
        torch.manual_seed(0)
        model = Regression()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        trainer = SimpleTrainer(model, batches(), optimizer)
        checkpointer = DetectionCheckpointer(model, str(tmp_path), trainer=trainer)
        trainer.register_hooks(
            [
                hooks.LRScheduler(scheduler=schedule()),
                hooks.PeriodicCheckpointer(checkpointer, period=5),
            ]
        )
        return trainer, checkpointer

    trainer, _ = build()
    trainer.train(0, 12)
    names = sorted(p.name for p in tmp_path.glob("*.pth"))
    assert names == ["model_0000004.pth", "model_0000009.pth", "model_final.pth"]
    resumed, checkpointer = build()
    checkpointer.load(str(tmp_path / "model_0000004.pth"))
    assert resumed.iter == 4
    resumed.data_loader = batches()[5:]
    resumed.train(5, 12)
    assert torch.equal(resumed.model.linear.weight, trainer.model.linear.weight)


def test_state_of_unknown_hooks_is_skipped_with_a_warning(caplog):
    trainer = TrainerBase()
    with caplog.at_level(logging.WARNING):
        trainer.load_state_dict({"iteration": 7, "hooks": {"Gone": {"a": 1}}})
    assert trainer.iter == 7 and "'Gone'" in caplog.text


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
    with pytest.raises(ValueError, match="x: no number"):
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


def test_argument_parser_takes_overrides_last():
    parser = default_argument_parser()
    args = parser.parse_args(
        ["--config-file", "a.py", "--num-gpus", "2", "--resume", "train.max_iter=3", "model.x=1"]
    )
    assert args.config_file == "a.py" and args.num_gpus == 2 and args.resume
    assert args.opts == ["train.max_iter=3", "model.x=1"]
    defaults = parser.parse_args([])
    assert (defaults.num_machines, defaults.machine_rank, defaults.eval_only) == (1, 0, False)
    assert defaults.dist_url.startswith("tcp://127.0.0.1:")
    assert "my epilog" in default_argument_parser("my epilog").format_help()


@pytest.fixture
def loggers_as_before():
    """Restore the global loggers."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.propagate, logger.handlers = propagate, handlers
        logger.setLevel(level)


@pytest.mark.usefixtures("loggers_as_before")
def test_default_setup_writes_log_and_config_and_seeds(tmp_path):
    cfg = OmegaConf.create({"train": {"output_dir": str(tmp_path / "out"), "seed": 5}, "x": 1})
    config_file = tmp_path / "config.py"
    config_file.write_text("x = 1\n")
    args = argparse.Namespace(config_file=str(config_file), eval_only=False)
    default_setup(cfg, args)
    first = torch.rand(3)
    default_setup(cfg, args)
    assert torch.equal(torch.rand(3), first)
    log = (tmp_path / "out" / "log.txt").read_text()
    for text in ("Rank of current process: 0. World size: 1", "Environment info", "config.py"):
        assert text in log
    assert LazyConfig.load(str(tmp_path / "out" / "config.yaml")).train.seed == 5


def test_predictor_explains_what_it_needs():
    with pytest.raises(TypeError, match="lazy config"):
        DefaultPredictor(OmegaConf.create({"model": {}}))


def test_one_process_runs_in_place_and_ddp_is_no_wrapper():
    seen = []
    launch(seen.append, 1, args=(3,))
    assert seen == [3]
    model = nn.Linear(2, 2)
    assert create_ddp_model(model) is model


def test_launch_checks_its_arguments():
    with pytest.raises(AssertionError, match="multi-machine"):
        launch(print, 1, num_machines=2, dist_url="auto")
    with pytest.raises(AssertionError, match="dist_url"):
        launch(print, 2)


class Oracle(nn.Module):
    """A model that returns the annotations of a record as detections."""

    def forward(self, records):
        return [{"instances": self.detections(record)} for record in records]

    def detections(self, record) -> Instances:
        annotations = record["annotations"]
        boxes = torch.tensor([a["bbox"] for a in annotations])
        boxes[:, 2:] += boxes[:, :2]
        return Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(boxes),
            pred_classes=torch.tensor([a["category_id"] for a in annotations]),
            scores=torch.linspace(0.9, 0.5, len(annotations)),
        )


def evaluate_oracle(json_file: str, out: str) -> dict:
    """Evaluate this rank's share of a data set; results arrive on rank 0."""
    register_coco_instances("test_oracle", {}, json_file, "")
    loader = build_detection_test_loader(DatasetCatalog.get("test_oracle"), mapper=None)
    evaluator = COCOEvaluator("test_oracle", output_dir=out)
    return inference_on_dataset(Oracle(), loader, evaluator)


def work_in_parallel(folder: str, json_file: str, fail: bool) -> None:
    """Two ranks train on halves of each batch of four, then evaluate halves of a data set."""
    rank = comm.get_rank()
    report_threads_at_exit(Path(folder) / f"threads{rank}.txt")
    assert comm.get_world_size() == 2 and comm.get_local_rank() == rank
    if fail and rank == 1:
        raise RuntimeError("rank 1 failed on purpose")
    torch.manual_seed(0)
    model = create_ddp_model(Regression().double())
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    shards = [batch.double().chunk(2)[rank] for batch in batches()]
    trainer = SimpleTrainer(model, shards, optimizer)
    trainer.train(0, 20)
    results = evaluate_oracle(json_file, folder)
    if not comm.is_main_process():
        assert results == {}
        return
    history = [value for value, _ in trainer.storage.histories()["total_loss"].values()]
    weights = model.module.linear.weight.detach()
    torch.save({"w": weights, "loss": history, "ap": results["bbox"]["AP"]}, folder + "/out.pth")


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the gloo processes of a CPU machine")
def test_two_gloo_processes_equal_one(tmp_path):
    json_file, _ = random_coco(tmp_path, num_images=7, with_images=False)
    arguments = (str(tmp_path), json_file, False)
    launch(
        work_in_parallel,
        2,
        dist_url="auto",
        args=arguments,
        timeout=timedelta(seconds=patience(60)),
    )
    result = torch.load(tmp_path / "out.pth")
    torch.manual_seed(0)
    model = Regression().double()
    loader = [batch.double() for batch in batches()]
    trainer = SimpleTrainer(model, loader, torch.optim.SGD(model.parameters(), 0.05))
    trainer.train(0, 20)
    torch.testing.assert_close(result["w"], model.linear.weight.detach(), rtol=0, atol=1e-12)
    expected = [value for value, _ in trainer.storage.histories()["total_loss"].values()]
    assert result["loss"] == pytest.approx(expected, rel=1e-12)
    assert result["ap"] == pytest.approx(100.0)
    # Each image arrived once, from whichever rank.
    saved = torch.load(tmp_path / "instances_predictions.pth")
    assert sorted(p["image_id"] for p in saved) == list(range(1, 8))
    # A thread of the group that meets the interpreter's end may abort the process.
    assert [(tmp_path / f"threads{rank}.txt").read_text() for rank in (0, 1)] == ["", ""]


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the gloo processes of a CPU machine")
def test_a_failing_rank_ends_the_run(tmp_path):
    with pytest.raises(Exception, match="rank 1 failed on purpose"):
        launch(work_in_parallel, 2, dist_url="auto", args=(str(tmp_path), "", True))


def test_metrics_are_written_outside_a_trainer():
    with EventStorage() as storage:
        SimpleTrainer.write_metrics({"loss": torch.tensor(2.0)}, 0.5, 3, prefix="val_")
    assert storage.latest()["val_total_loss"] == (2.0, 3)
    assert storage.latest()["data_time"] == (0.5, 3)
