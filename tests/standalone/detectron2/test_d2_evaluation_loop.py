"""The evaluation loop, and printing and verifying results."""

import logging
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.testing import flatten_results_dict
from omegaconf import OmegaConf


class Counter(DatasetEvaluator):
    def __init__(self, task: str = "count") -> None:
        self.task = task
        self.seen: list = []

    def reset(self) -> None:
        self.seen = []

    def process(self, inputs, outputs) -> None:
        self.seen.extend(zip(inputs, outputs, strict=True))

    def evaluate(self) -> dict:
        return {self.task: {"n": len(self.seen)}}


class Double(torch.nn.Module):
    def forward(self, inputs):
        assert not self.training and not torch.is_grad_enabled()
        return [2 * value for value in inputs]


def test_inference_runs_everything_once_in_eval_mode(caplog):
    model = Double().train()
    evaluator = Counter()
    calls = []
    callbacks = {key: (lambda k=key: calls.append(k)) for key in ("on_start", "on_end")}
    callbacks["before_inference"] = lambda: calls.append("b")
    with caplog.at_level(logging.INFO):
        results = inference_on_dataset(
            model, [[i] for i in range(12)], evaluator, callbacks=callbacks
        )
    assert results == {"count": {"n": 12}}
    assert evaluator.seen == [(i, 2 * i) for i in range(12)]
    assert model.training
    assert calls == ["on_start", *["b"] * 12, "on_end"]
    assert "12 batches" in caplog.text
    assert caplog.text.count("on 1 devices") == 2, "in all, and of the model"


@pytest.mark.parametrize("n", [1, 3, 7])
def test_few_batches(n):
    assert inference_on_dataset(Double(), [[0]] * n, None) == {}
    several = [Counter("a"), Counter("b")]
    expected = {"a": {"n": n}, "b": {"n": n}}
    assert inference_on_dataset(Double(), [[0]] * n, several) == expected
    of_a_config = instantiate(OmegaConf.create([L(Counter)(task="a"), L(Counter)(task="b")]))
    assert inference_on_dataset(Double(), [[0]] * n, of_a_config) == expected


def test_evaluators_must_not_share_a_task():
    with pytest.raises(AssertionError, match="key count"):
        DatasetEvaluators([Counter(), Counter()]).evaluate()


def test_inference_context_restores_the_mode_after_an_error():
    model = Double().train()
    with pytest.raises(RuntimeError), inference_context(model):
        assert not model.training
        raise RuntimeError
    assert model.training


def test_copypaste_lines(caplog):
    results = {"bbox": {"AP": 41.23456, "AP50": 60.0, "AP-cat": 1.0}, "loss": 2.5}
    with caplog.at_level(logging.INFO):
        print_csv_format(results)
    assert [record.getMessage() for record in caplog.records] == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 41.2346,60.0000",
        "copypaste: loss=2.5",
    ]


def test_flatten_and_verify():
    results = {"bbox": {"AP": 41.0}, "x": 1}
    assert flatten_results_dict(results) == {"bbox/AP": 41.0, "x": 1}

    def cfg(*expected):
        return SimpleNamespace(TEST=SimpleNamespace(EXPECTED_RESULTS=list(expected)))

    assert verify_results(cfg(), results)
    assert verify_results(cfg(["bbox", "AP", 41.4, 0.5]), results)
    with pytest.raises(SystemExit):
        verify_results(cfg(["bbox", "AP", 42.0, 0.5]), results)
    with pytest.raises(SystemExit):
        verify_results(cfg(["bbox", "AP75", 42.0, 0.5]), results)
