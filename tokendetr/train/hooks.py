"""Hooks: checkpoints with resume, the best checkpoint, epochs in the log, orderly stops."""

import logging
import math
import os
import re
import signal
from collections.abc import MutableMapping
from types import FrameType
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter

from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.data.random_state import RngState
from tokendetr.train.trainer import TrainingInterrupted

__all__ = [
    "BestCheckpoint",
    "Checkpoints",
    "EpochCounter",
    "EpochPrinter",
    "RestoreRng",
    "StopOnSignal",
]

logger = logging.getLogger(__name__)


class Checkpoints(hooks.PeriodicCheckpointer):
    """Saves ``model_<iteration>.pth`` every period and ``model_final.pth`` at the end.

    To be registered on all ranks. After a resume the files of the run before count towards
    ``max_to_keep``.
    """

    def before_train(self) -> None:
        """Find the files of the run before."""
        super().before_train()
        folder = self.checkpointer.save_dir
        if not comm.is_main_process():
            # Rank 0 alone removes old files.
            self.max_to_keep = None
        elif os.path.isdir(folder):
            names = sorted(n for n in os.listdir(folder) if re.match(r"^model_\d{7}\.pth$", n))
            self.recent_checkpoints = [os.path.join(folder, name) for name in names]


class BestCheckpoint(HookBase):
    """Saves ``model_best.pth`` (weights and moving average) whenever a metric is the best so far.

    Register it after the evaluation. After a resume the best value is read from the file itself.

    Args:
        checkpointer: writes the file.
        metric: name in the event storage, such as ``bbox/AP``.
        name: of the file, without ending.
    """

    def __init__(
        self, checkpointer: AtomicCheckpointer, metric: str, name: str = "model_best"
    ) -> None:
        self._checkpointer = checkpointer
        self._metric = metric
        self._name = name
        self._best = -math.inf
        self._seen = -1

    def before_train(self) -> None:
        """Continue from the best value of an earlier part of this run."""
        path = os.path.join(self._checkpointer.save_dir, f"{self._name}.pth")
        if self.trainer.start_iter == 0 or not os.path.isfile(path):
            return
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            logger.warning("Cannot read %s (%s); the best metric starts anew", path, error)
            return
        if saved.get("best_metric_name") == self._metric:
            self._best = float(saved["best_metric"])

    def after_step(self) -> None:
        """Save if the evaluation of this step was the best."""
        self._update()

    def after_train(self) -> None:
        """Save if the last evaluation was the best."""
        self._update()

    def _update(self) -> None:
        # Metrics are on rank 0; saving is collective, so all ranks decide by its value.
        latest = self.trainer.storage.latest().get(self._metric)
        value, iteration = comm.all_gather(latest)[0] or (math.nan, -1)
        if iteration <= self._seen or not math.isfinite(value):
            return
        self._seen = iteration
        if value <= self._best:
            return
        self._best = float(value)
        self._checkpointer.save_weights(
            self._name,
            iteration=int(iteration),
            best_metric=self._best,
            best_metric_name=self._metric,
        )
        logger.info("New best %s: %.4f at iteration %d", self._metric, value, iteration)


class EpochCounter(HookBase):
    """Records ``epoch``, the number of passes over the data so far, beside every iteration.

    Args:
        updates_per_epoch: iterations in which as many images are read as the data set has.
    """

    def __init__(self, updates_per_epoch: float) -> None:
        self._updates_per_epoch = updates_per_epoch

    def after_step(self) -> None:
        """Record the epoch at the end of this step."""
        epoch = (self.trainer.iter + 1) / self._updates_per_epoch
        self.trainer.storage.put_scalar("epoch", epoch, smoothing_hint=False)


class _WithEpoch(logging.LoggerAdapter):
    """Puts the epoch behind the iteration of upstream's log line."""

    def __init__(self, target: logging.Logger, updates_per_epoch: float) -> None:
        super().__init__(target, {})
        self._updates_per_epoch = updates_per_epoch

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, Any]:
        def add_epoch(match: re.Match[str]) -> str:
            epoch = (int(match.group(1)) + 1) / self._updates_per_epoch
            return f"{match.group(0)}  epoch: {epoch:.2f}"

        return re.sub(r"\biter: (\d+)", add_epoch, str(msg), count=1), kwargs


class EpochPrinter(CommonMetricPrinter):
    """detectron2's log line with ``epoch: 0.85`` behind the iteration.

    Args:
        max_iter: number of iterations, for the remaining time.
        updates_per_epoch: iterations of one pass over the data; None leaves the line as it is.
    """

    def __init__(self, max_iter: int, updates_per_epoch: float | None) -> None:
        super().__init__(max_iter)
        if updates_per_epoch is not None:
            self.logger: Any = _WithEpoch(self.logger, updates_per_epoch)


class RestoreRng(HookBase):
    """Sets the random number generators to the checkpoint's, last before the first step.

    Args:
        state: what the checkpointer loaded into.
        is_resumed: warn where the checkpoint had no such state.
    """

    def __init__(self, state: RngState, is_resumed: bool) -> None:
        self._state = state
        self._is_resumed = is_resumed

    def before_train(self) -> None:
        """Set the generators."""
        if not self._state.apply() and self._is_resumed:
            logger.warning(
                "The checkpoint has no random state of rank %d (it was saved by another program or "
                "with fewer processes): the run goes on, but not bit for bit as if uninterrupted",
                comm.get_rank(),
            )


class StopOnSignal(HookBase):
    """On SIGTERM or SIGINT: finish the step, save a checkpoint, leave. A second signal kills.

    Register it last.

    Args:
        checkpointer: saves the checkpoint.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, checkpointer: AtomicCheckpointer) -> None:
        self._checkpointer = checkpointer
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def before_train(self) -> None:
        """Take over the signals."""
        for number in self._SIGNALS:
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:
                logger.debug("Not in the main thread: signals are left alone")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._release()

    def _release(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def before_step(self) -> None:
        """Tell the trainer, which tells the other ranks."""
        if self._received is not None:
            self.trainer.stop_requested = True  # type: ignore[attr-defined]

    def after_step(self) -> None:
        """Save and leave if any rank was asked to."""
        if not getattr(self.trainer, "stop_requested", False):
            return
        iteration = self.trainer.iter
        self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        logger.warning("Stopped by a signal after iteration %d; continue with --resume", iteration)
        raise TrainingInterrupted(128 + (self._received or signal.SIGTERM))

    def after_train(self) -> None:
        """Give the signals back."""
        self._release()
