"""An interrupted and resumed run ends with the bits of an uninterrupted one."""

import json
import random

import numpy as np
import pytest
import torch

from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.data.random_state import capture_rng, preserved_rng, restore_rng, seeded_rng
from tokendetr.errors import ConfigError


def assert_same_state(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def metric_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


VARIANTS = {
    "plain": [],
    "workers": ["dataloader.train.num_workers=2"],
    "ema": ["train.model_ema.enabled=True", "train.model_ema.decay=0.9"],
    "accumulation": ["train.grad_accum_steps=2"],
    "bfloat16": ["train.amp.enabled=True", "train.amp.dtype=bfloat16"],
    "no grouping": ["+dataloader.train.aspect_ratio_grouping=False"],
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
def test_resume_is_bitwise(toy_run, tmp_path, overrides):
    whole = toy_run(tmp_path / "whole", *overrides)
    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path / "parts", *overrides, interrupt_at=6)
    resumed = toy_run(tmp_path / "parts", *overrides, resume=True)
    assert_same_state(whole.state_dict(), resumed.state_dict())
    ends = [read_checkpoint(str(tmp_path / f / "model_final.pth")) for f in ("whole", "parts")]
    assert ends[0]["data_state"] == ends[1]["data_state"]
    for name in ("rng_state", "ema_state"):
        if name in ends[0]:
            flat = [torch.utils._pytree.tree_flatten(end[name])[0] for end in ends]
            assert len(flat[0]) == len(flat[1])
            for a, b in zip(*flat, strict=True):
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_resume_with_another_number_of_workers(toy_run, tmp_path):
    whole = toy_run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path / "parts", "dataloader.train.num_workers=3", interrupt_at=9)
    resumed = toy_run(tmp_path / "parts", "dataloader.train.num_workers=1", resume=True)
    assert_same_state(whole.state_dict(), resumed.state_dict())


def test_a_run_that_is_past_its_last_iteration_is_not_resumed(toy_run, tmp_path):
    toy_run(tmp_path, "train.max_iter=3")
    before = metric_lines(tmp_path)
    with pytest.raises(ConfigError, match=r"has 3 iterations, more than train.max_iter=2"):
        toy_run(tmp_path, "train.max_iter=2", resume=True)
    assert metric_lines(tmp_path) == before


def test_seed_changes_the_run(toy_run, tmp_path):
    # Otherwise the tests above could pass because nothing is random.
    first = toy_run(tmp_path / "a", "train.max_iter=3").state_dict()
    again = toy_run(tmp_path / "b", "train.max_iter=3").state_dict()
    other = toy_run(tmp_path / "c", "train.max_iter=3", "train.seed=8").state_dict()
    assert_same_state(first, again)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_random_seed_is_restored(toy_run, tmp_path):
    """With seed -1 the stream's seed is drawn; a resumed run uses the drawn one."""
    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path, "train.seed=-1", interrupt_at=5)
    saved = read_checkpoint(str(tmp_path / "model_0000003.pth"))["data_state"]
    toy_run(tmp_path, "train.seed=-1", resume=True)
    final = read_checkpoint(str(tmp_path / "model_final.pth"))["data_state"]
    assert saved["seed"] == final["seed"]
    assert (saved["images"], final["images"]) == (16, 48)


def test_evaluation_does_not_change_training(toy_run, tmp_path):
    often = toy_run(tmp_path / "often", "train.eval_period=1")
    never = toy_run(tmp_path / "never", "train.eval_period=0")
    assert_same_state(often.state_dict(), never.state_dict())


def test_epoch_and_metrics_are_recorded(toy_run, tmp_path, caplog):
    with caplog.at_level("INFO"):
        toy_run(tmp_path, "train.model_ema.enabled=True", "train.log_period=5")
    lines = metric_lines(tmp_path)
    by_iteration = {line["iteration"]: line for line in lines}
    assert by_iteration[4]["epoch"] == pytest.approx(5 * 4 / 10)
    assert {"bbox/AP", "bbox_ema/AP", "grad_norm", "lr"} <= set().union(*lines)
    assert "iter: 4  epoch: 2.00" in caplog.text


def test_best_checkpoint_survives_resume(toy_run, tmp_path):
    toy_run(tmp_path, "train.max_iter=12", "train.eval_period=3")
    best = read_checkpoint(str(tmp_path / "model_best.pth"))
    values = [line["bbox/AP"] for line in metric_lines(tmp_path) if "bbox/AP" in line]
    assert best["best_metric_name"] == "bbox/AP"
    assert best["best_metric"] == max(values)
    # A best value that cannot be exceeded stays to the end of the run.
    best["best_metric"] = 1000.0
    torch.save(best, tmp_path / "model_best.pth")
    toy_run(tmp_path, "train.max_iter=15", "train.eval_period=1", resume=True)
    assert read_checkpoint(str(tmp_path / "model_best.pth"))["best_metric"] == 1000.0
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_old_checkpoints_are_removed_also_after_resume(toy_run, tmp_path):
    keep = "train.checkpointer.max_to_keep=2"
    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path, keep, "train.checkpointer.period=2", interrupt_at=7)
    toy_run(tmp_path, keep, "train.checkpointer.period=2", resume=True)
    numbered = sorted(p.name for p in tmp_path.glob("model_0*.pth"))
    assert numbered == ["model_0000009.pth", "model_0000011.pth"]


def test_rng_round_trip():
    restore_rng(capture_rng())
    state = capture_rng()
    first = (random.random(), np.random.rand(), torch.rand(1).item(), np.random.randn())
    restore_rng(state)
    assert first == (random.random(), np.random.rand(), torch.rand(1).item(), np.random.randn())
    with preserved_rng():
        kept = torch.rand(1).item()
    assert torch.rand(1).item() == kept


def test_seeded_rng_depends_on_numbers_alone():
    def draw(*entropy):
        with seeded_rng(*entropy):
            return random.random(), np.random.rand(), torch.rand(1).item()

    first = draw(3, 5)
    torch.rand(7)
    assert draw(3, 5) == first
    assert len({draw(3, 6), draw(4, 5), first}) == 3
