"""Hooks: timing, schedules, checkpoints, writers, evaluation, profiling."""
# Over 350 lines: upstream has all of this in one module, and users find it there.

import datetime
import logging
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.engine._diagnostic_hooks import (
    AutogradProfiler,
    PreciseBN,
    TorchMemoryStats,
    TorchProfiler,
)
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.solver import LRScheduler as _LRScheduler
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer

__all__ = [
    "AutogradProfiler",
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
    "TorchMemoryStats",
    "TorchProfiler",
]


class CallbackHook(HookBase):
    """A hook made of functions that take the trainer; omitted ones do nothing."""

    def __init__(
        self,
        *,
        before_train: Callable[[TrainerBase], None] | None = None,
        after_train: Callable[[TrainerBase], None] | None = None,
        before_step: Callable[[TrainerBase], None] | None = None,
        after_step: Callable[[TrainerBase], None] | None = None,
    ) -> None:
        self._before_train = before_train
        self._after_train = after_train
        self._before_step = before_step
        self._after_step = after_step

    def before_train(self) -> None:
        if self._before_train:
            self._before_train(self.trainer)

    def after_train(self) -> None:
        if self._after_train:
            self._after_train(self.trainer)
        # The functions may close over the trainer: drop the reference cycle.
        self._before_train = self._after_train = None
        self._before_step = self._after_step = None

    def before_step(self) -> None:
        if self._before_step:
            self._before_step(self.trainer)

    def after_step(self) -> None:
        if self._after_step:
            self._after_step(self.trainer)


class IterationTimer(HookBase):
    """Record the seconds of each step as ``time`` and log a summary at the end.

    Args:
        warmup_iter: the first steps that the summary leaves out.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._total_timer = Timer()
        self._start_time = time.perf_counter()

    def before_train(self) -> None:
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        logger = logging.getLogger(__name__)
        total = time.perf_counter() - self._start_time
        in_steps = self._total_timer.seconds()
        in_hooks = total - in_steps
        num_steps = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if num_steps > 0 and in_steps > 0:
            logger.info(
                "Overall training speed: %d iterations in %s (%.4f s / it)",
                num_steps,
                datetime.timedelta(seconds=int(in_steps)),
                in_steps / num_steps,
            )
        logger.info(
            "Total training time: %s (%s on hooks)",
            datetime.timedelta(seconds=int(total)),
            datetime.timedelta(seconds=int(in_hooks)),
        )

    def before_step(self) -> None:
        self._step_timer.reset()
        if self._total_timer.is_paused():
            self._total_timer.resume()

    def after_step(self) -> None:
        # This hook is the first: the time of the hooks after it is not part of the step.
        steps_done = self.trainer.storage.iter - self.trainer.start_iter + 1
        if steps_done >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
            self._total_timer.pause()
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
            self._total_timer.pause()


class PeriodicWriter(HookBase):
    """Call event writers every ``period`` steps and after the last one.

    Args:
        writers: event writers.
        period: in iterations.
    """

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        for writer in writers:
            assert isinstance(writer, EventWriter), writer
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        last = self.trainer.iter == self.trainer.max_iter - 1
        if (self.trainer.iter + 1) % self._period == 0 or last:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            # Hooks that ran after the last write may have put more into the storage.
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's periodic checkpointer as a hook: ``model_0004999.pth``, ..., ``model_final.pth``."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Save a checkpoint whenever a metric improves.

    Register it after the evaluation hook.

    Args:
        eval_period: the evaluation's period.
        checkpointer: saves the checkpoint.
        val_metric: name of the metric in the event storage, such as ``"bbox/AP50"``.
        mode: ``"max"`` if larger is better, or ``"min"``.
        file_prefix: the checkpoint's name without ``.pth``.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        assert mode in ("max", "min"), f"mode is 'max' or 'min', not {mode!r}"
        self._logger = logging.getLogger(__name__)
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._is_better = operator.gt if mode == "max" else operator.lt
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _best_checking(self) -> None:
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            self._logger.warning(
                "Given val metric %s does not seem to be computed/stored. "
                "Will not be checkpointing based on it.",
                self._val_metric,
            )
            return
        value, iteration = latest
        if math.isnan(value) or math.isinf(value):
            return
        if self.best_metric is not None and not self._is_better(value, self.best_metric):
            self._logger.info(
                "Not saving as latest eval score for %s is %.5f, not better than best score "
                "%.5f @ iteration %s.",
                self._val_metric,
                value,
                self.best_metric,
                self.best_iter,
            )
            return
        first = self.best_metric is None
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        self._logger.info(
            "Saved %s model at %0.5f for %s after %d steps",
            "first" if first else "best",
            value,
            self._val_metric,
            iteration + 1,
        )
        self.best_metric, self.best_iter = value, iteration

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        due = self._period > 0 and next_iter % self._period == 0
        # The last iteration is handled in after_train, like the evaluation's.
        if due and next_iter != self.trainer.max_iter:
            self._best_checking()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._best_checking()


class LRScheduler(HookBase):
    """Step a learning-rate schedule after each iteration and record ``lr``.

    Args:
        optimizer: the optimizer; the trainer's when None.
        scheduler: a torch scheduler, or an fvcore ``ParamScheduler`` that multiplies the learning
            rates the optimizer has at the start; the trainer's ``scheduler`` when None.
    """

    def __init__(self, optimizer: Any = None, scheduler: Any = None) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._best_param_group_id = 0

    def before_train(self) -> None:
        self._optimizer = self._optimizer or self.trainer.optimizer  # type: ignore[attr-defined]
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer,
                self.scheduler,
                self.trainer.max_iter,
                last_iter=self.trainer.iter - 1,
            )
        self._best_param_group_id = LRScheduler.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Return the index of the parameter group whose learning rate is logged.

        The group with the most parameters, or, if every group has one parameter, the first with the
        most frequent learning rate.
        """
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        lr = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", lr, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self) -> Any:
        return self._scheduler or self.trainer.scheduler  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict() if isinstance(self.scheduler, _LRScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if isinstance(self.scheduler, _LRScheduler):
            logging.getLogger(__name__).info(
                "The learning-rate schedule goes on from the checkpoint"
            )
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluate each ``eval_period`` iterations, and in the end.

    Args:
        eval_period: in iterations; 0 means only after training.
        eval_function: takes nothing, returns a nested dict of numbers, which are recorded.
        eval_after_train: evaluate when training has finished.
    """

    def __init__(
        self,
        eval_period: int,
        eval_function: Callable[[], Mapping[str, Any] | None],
        eval_after_train: bool = True,
    ) -> None:
        self._period = eval_period
        self._func: Callable[[], Mapping[str, Any] | None] | None = eval_function
        self._eval_after_train = eval_after_train

    def _do_eval(self) -> None:
        assert self._func is not None
        results = self._func()
        if results:
            assert isinstance(results, dict), (
                f"the evaluation returns a dict of results, not {results!r}"
            )
            flattened = flatten_results_dict(results)
            for key, value in flattened.items():
                try:
                    flattened[key] = float(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(
                        f"the evaluation's result {key} is not a number: {value!r}"
                    ) from error
            self.trainer.storage.put_scalars(**flattened, smoothing_hint=False)
        # Ranks may finish at different times.
        comm.synchronize()

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        due = self._period > 0 and next_iter % self._period == 0
        if due and next_iter != self.trainer.max_iter:
            self._do_eval()

    def after_train(self) -> None:
        # After an error the iteration has not reached the end.
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._do_eval()
        # The function may close over the trainer: drop the reference cycle.
        self._func = None
