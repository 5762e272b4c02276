"""The evaluator interface and the loop that feeds evaluators."""

import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from detectron2.utils.comm import get_world_size, is_main_process
from detectron2.utils.logger import log_every_n_seconds
from torch import nn

__all__ = ["DatasetEvaluator", "DatasetEvaluators", "inference_context", "inference_on_dataset"]


class DatasetEvaluator:
    """Base class of evaluators: collect a model's outputs over a data set and score them."""

    def reset(self) -> None:
        """Clear the collected outputs; called before each evaluation."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Collect the outputs of one batch.

        Args:
            inputs: the model's inputs, a list of dicts.
            outputs: the model's outputs, a list of dicts.
        """

    def evaluate(self) -> dict[str, Any] | None:
        """Return the results, task -> metric -> number; None on ranks other than 0."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one; their tasks must have different names.

    Args:
        evaluators: the evaluators.
    """

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        super().__init__()
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        results: dict[str, Any] = OrderedDict()
        for evaluator in self._evaluators:
            result = evaluator.evaluate()
            if is_main_process() and result is not None:
                for key, value in result.items():
                    assert key not in results, f"two evaluators have results under the key {key}"
                    results[key] = value
        return results


class _Clock:
    """Seconds spent per phase since the warm-up ended."""

    PHASES = ("data", "compute", "eval")

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.start = time.perf_counter()
        self.seconds = dict.fromkeys(self.PHASES, 0.0)
        self._last = self.start

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to a phase."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now

    def total(self) -> float:
        return time.perf_counter() - self.start


def inference_on_dataset(
    model: Any,
    data_loader: Iterable[Any],
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
    callbacks: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Run a model over a data set and evaluate it.

    Without gradients; a module runs in evaluation mode and returns to its mode.

    Args:
        model: takes a batch of the loader.
        data_loader: batches, with a length.
        evaluator: one or several; None only measures speed.
        callbacks: functions for ``on_start``, ``before_inference`` and ``after_inference`` (each
            batch), and ``on_end``.

    Returns:
        The evaluator's results; empty if it has none (ranks other than 0).
    """
    num_devices = get_world_size()
    logger = logging.getLogger(__name__)
    total = len(data_loader)  # type: ignore[arg-type]
    logger.info("Evaluating %d batches", total)
    if evaluator is None:
        evaluator = DatasetEvaluators([])
    if isinstance(evaluator, Sequence):  # also omegaconf's lists, of a config's evaluators
        evaluator = DatasetEvaluators(evaluator)
    evaluator.reset()
    hooks = callbacks or {}
    num_warmup = min(5, total - 1)
    clock = _Clock()
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        _call(hooks, "on_start")
        for index, inputs in enumerate(data_loader):
            clock.lap("data")
            if index == num_warmup:
                clock.restart()
            _call(hooks, "before_inference")
            outputs = model(inputs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            _call(hooks, "after_inference")
            clock.lap("compute")
            evaluator.process(inputs, outputs)
            clock.lap("eval")
            done = index + 1 - num_warmup * int(index >= num_warmup)
            if index >= num_warmup * 2 or clock.seconds["compute"] / done > 5:
                _log_progress(clock, index, total, done)
        _call(hooks, "on_end")
    _log_summary(clock, max(total - num_warmup, 1), num_devices)
    results = evaluator.evaluate()
    return {} if results is None else results


def _call(hooks: dict[str, Callable[[], Any]], name: str) -> None:
    if hooks.get(name) is not None:
        hooks[name]()


def _log_progress(clock: _Clock, index: int, total: int, done: int) -> None:
    per_batch = {phase: seconds / done for phase, seconds in clock.seconds.items()}
    whole = clock.total() / done
    eta = datetime.timedelta(seconds=int(whole * (total - index - 1)))
    log_every_n_seconds(
        logging.INFO,
        f"Evaluated {index + 1}/{total}, {eta} to go; seconds per batch: {whole:.4f}, "
        f"of them data {per_batch['data']:.4f}, model {per_batch['compute']:.4f}, "
        f"evaluator {per_batch['eval']:.4f}",
        n=5,
        name=__name__,
    )


def _log_summary(clock: _Clock, num_batches: int, num_devices: int) -> None:
    logger = logging.getLogger(__name__)
    total, compute = clock.total(), clock.seconds["compute"]
    logger.info(
        "The evaluation took %s (%.6f s per batch and device, on %d devices)",
        datetime.timedelta(seconds=total),
        total / num_batches,
        num_devices,
    )
    logger.info(
        "Of that, the model took %s (%.6f s per batch and device, on %d devices)",
        datetime.timedelta(seconds=int(compute)),
        compute / num_batches,
        num_devices,
    )


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Within the context, hold a module in evaluation mode; then restore its mode."""
    training_mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training_mode)
