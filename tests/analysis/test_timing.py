import time

import numpy as np
import pytest
import torch
from torch import nn

from tokendetr.analysis.timing import (
    Summary,
    peak_memory,
    peak_tensor_bytes,
    reset_peak_memory,
    split_time,
    take_turns,
    timed,
    turn_order,
)

CPU = torch.device("cpu")


class Sleeping(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self) -> None:
        time.sleep(self.seconds)


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Sleeping(0.02)
        self.transformer = nn.Module()
        self.transformer.encoder = Sleeping(0.05)

    def forward(self) -> None:
        self.backbone()
        self.transformer.encoder()
        self.transformer.encoder()
        time.sleep(0.01)


def test_summary_is_that_of_numpy():
    samples = np.random.default_rng(0).exponential(size=37).tolist()
    summary = Summary.of(samples)
    assert summary.median == pytest.approx(np.median(samples))
    assert summary.p10 == pytest.approx(np.percentile(samples, 10))
    assert summary.p90 == pytest.approx(np.percentile(samples, 90))
    assert summary.count == 37
    assert Summary.of([3.0]) == Summary(3.0, 3.0, 3.0, 1)
    with pytest.raises(ValueError, match="no measurement"):
        Summary.of([])


def test_each_turn_begins_with_another_contender():
    orders = [turn_order(["a", "b", "c"], turn) for turn in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_time_is_split_by_part():
    model = Detector()
    seconds = split_time(model, model, CPU)
    assert set(seconds) == {"backbone", "encoder", "rest", "total"}  # there is no decoder
    assert seconds["backbone"] >= 0.02
    assert seconds["encoder"] >= 0.1  # both calls
    assert seconds["rest"] >= 0.009
    parts = seconds["backbone"] + seconds["encoder"] + seconds["rest"]
    assert parts == pytest.approx(seconds["total"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_are_removed_when_the_model_fails():
    model = Detector()

    def broken() -> None:
        model.backbone()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        split_time(model, broken, CPU)
    assert not model.backbone._forward_hooks


def test_a_call_is_timed():
    assert timed(lambda: time.sleep(0.03), CPU) >= 0.03


def test_functions_take_turns_after_one_call_that_warms_up(capsys):
    order = []
    runs = {name: lambda name=name: order.append(name) or len(order) for name in ("one", "other")}
    samples, first = take_turns(runs, CPU, 2)
    assert order == ["one", "other", "other", "one", "one", "other"]
    assert first == {"one": 1, "other": 2}
    assert {name: len(times) for name, times in samples.items()} == {"one": 2, "other": 2}
    assert capsys.readouterr().err.count("one: ") == 3


def test_peak_of_tensors_counts_what_lives_at_once():
    mebibyte = 2**20

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.zeros(2 * mebibyte).sum()

    def together() -> None:
        kept = [torch.zeros(2 * mebibyte) for _ in range(3)]
        assert len(kept) == 3

    there_before = torch.zeros(100 * mebibyte, dtype=torch.uint8)
    assert 8 * mebibyte <= peak_tensor_bytes(one_after_the_other) < 9 * mebibyte
    assert 24 * mebibyte <= peak_tensor_bytes(together) < 25 * mebibyte
    assert peak_tensor_bytes(there_before.max) < mebibyte
    # A result lives beside its input; in place there is one.
    x = torch.zeros(mebibyte)
    assert peak_tensor_bytes(lambda: x.add(1).softmax(0)) >= 8 * mebibyte
    assert 4 * mebibyte <= peak_tensor_bytes(lambda: x.add(1).exp_()) < 5 * mebibyte


def test_peak_memory_sees_what_is_gone_already():
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    torch.ones(50 * 2**20)  # 200 MiB, freed immediately
    assert peak_memory(CPU) - before > 150 * 2**20


@pytest.mark.cuda
def test_gpu_time_is_split_by_part():
    device = torch.device("cuda")
    model = nn.Module()
    model.backbone = nn.Linear(2048, 2048).to(device)
    images = torch.rand(4096, 2048, device=device)

    def run() -> None:
        for _ in range(20):
            model.backbone(images)

    run()
    reset_peak_memory(device)
    seconds = split_time(model, run, device)
    assert 0 < seconds["backbone"] <= seconds["total"] * 1.01
    assert peak_memory(device) >= images.nbytes
