"""The training loop, its trainers and their state."""

import logging

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import (
    AMPTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    hooks,
)
from detectron2.utils.events import EventStorage

from tests.standalone.detectron2.toy_training import Regression, batches, make_trainer, schedule


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
    with pytest.raises(FloatingPointError, match=r"iteration.3(.|\n)*loss_a"):
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


def test_metrics_are_written_outside_a_trainer():
    with EventStorage() as storage:
        SimpleTrainer.write_metrics({"loss": torch.tensor(2.0)}, 0.5, 3, prefix="val_")
    assert storage.latest()["val_total_loss"] == (2.0, 3)
    assert storage.latest()["data_time"] == (0.5, 3)
