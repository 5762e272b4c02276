"""Training hooks: checkpoints, evaluations, the best checkpoint, epochs, random state."""

import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.data.random_state import RngState
from tokendetr.errors import ConfigError
from tokendetr.train.run_folder import RunFolder
from tokendetr.train.stop import StopSignals
from tokendetr.train.writers import Writers

__all__ = ["BestCheckpoint", "Checkpoints", "EpochCounter", "Evaluations", "RestoreRng"]

logger = logging.getLogger(__name__)

_BEST = "model_best"
_NUMBERED = re.compile(r"^model_(\d{7,})\.pth$")


def is_due(period: int, iteration: int) -> bool:
    """Return whether something with a period (0: never) is due after an iteration."""
    return period > 0 and (iteration + 1) % period == 0


class Checkpoints(HookBase):
    """Save ``model_<iteration>.pth`` regularly, and ``model_final.pth`` at the end.

    The former is saved every period, before every evaluation, and when a signal stops the run. As
    the weights are saved first, an evaluation may be interrupted at any moment. The hook must be
    registered on all ranks, before the evaluations.

    Args:
        checkpointer: writes the files.
        period: in iterations; 0 for never.
        eval_period: period of the evaluations in iterations; 0 for none before the end.
        max_to_keep: number of ``model_<iteration>.pth`` files to keep, counting those from before a
            resume; None or 0 for all.
    """

    def __init__(
        self,
        checkpointer: AtomicCheckpointer,
        period: int,
        *,
        eval_period: int = 0,
        max_to_keep: int | None = None,
    ) -> None:
        self._checkpointer = checkpointer
        self._period = period
        self._eval_period = eval_period
        self._max_to_keep = max_to_keep or None

    def before_train(self) -> None:
        """Prune old files, and write ``model_final.pth`` if the run was killed just before that."""
        self._prune(self.trainer.start_iter - 1)
        is_done = self.trainer.start_iter >= self.trainer.max_iter
        # Otherwise model_final.pth was missing, damaged or of fewer iterations.
        if is_done and os.path.basename(self._checkpointer.resumed_from) != "model_final.pth":
            self.trainer.iter -= 1  # the file has the state after that iteration
            self._save_final(self.trainer.iter)
            self.trainer.iter += 1

    def after_step(self) -> None:
        """Save if a checkpoint is due."""
        iteration = self.trainer.iter
        is_last = iteration == self.trainer.max_iter - 1
        evaluates = is_due(self._eval_period, iteration) and not is_last
        if is_due(self._period, iteration) or evaluates:
            self.save(iteration)
        if is_last:
            self._save_final(iteration)

    def save(self, iteration: int) -> None:
        """Save the state after an iteration."""
        self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        self._prune(iteration)

    def _save_final(self, iteration: int) -> None:
        self._checkpointer.save("model_final", iteration=iteration)

    def _prune(self, iteration: int) -> None:
        """Remove the oldest files, but none of later iterations.

        Later files exist if a run was resumed from an earlier checkpoint because the last ones were
        damaged; counting them would remove the intact ones.
        """
        folder = self._checkpointer.save_dir
        if self._max_to_keep is None or not comm.is_main_process() or not os.path.isdir(folder):
            return
        found = sorted(
            (int(match.group(1)), name)
            for name in os.listdir(folder)
            if (match := _NUMBERED.match(name)) and int(match.group(1)) <= iteration
        )
        for _, name in found[: -self._max_to_keep]:
            _remove(os.path.join(folder, name))


def _remove(path: str) -> None:
    """Remove a file; only warn if that fails, since it merely costs disk space."""
    try:
        os.remove(path)
    except OSError as error:
        logger.warning("Cannot remove the old checkpoint %s: %s", path, error.strerror)


class Evaluations(HookBase):
    """Evaluate each ``period`` iterations, and in the end.

    If the run was killed before a due evaluation was recorded, it is done when training resumes. A
    signal ends an evaluation at once.

    Args:
        period: in iterations; 0 to evaluate only after the last one.
        evaluate: called on all ranks; returns nested metrics on rank 0.
        writers: writes the results (rank 0).
        folder: records which evaluations are done.
        stop: the run's stop signals.

    Attributes:
        given: names of the last evaluation's metrics (rank 0).
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], Mapping[str, Any] | None],
        writers: Writers | None,
        folder: RunFolder,
        stop: StopSignals,
    ) -> None:
        self._period = period
        self._evaluate = evaluate
        self._writers = writers
        self._folder = folder
        self._stop = stop
        self.given: list[str] = []

    def before_train(self) -> None:
        """Do the evaluation that was due at the resumed checkpoint, unless it is recorded."""
        start = self.trainer.start_iter
        if start == 0 or start >= self.trainer.max_iter or not is_due(self._period, start - 1):
            return
        if comm.all_gather(self._folder.evaluated)[0] < start - 1:
            logger.info("Doing the missed evaluation after iteration %d", start - 1)
            self._run(start - 1)

    def after_step(self) -> None:
        """Evaluate if it is due; after the last iteration :meth:`after_train` does it."""
        iteration = self.trainer.iter
        if is_due(self._period, iteration) and iteration != self.trainer.max_iter - 1:
            self._run(iteration)

    def after_train(self) -> None:
        """Evaluate the final weights, unless that is recorded already."""
        final = self.trainer.max_iter
        if comm.all_gather(self._folder.evaluated)[0] < final:
            self._run(final)

    def _run(self, iteration: int) -> None:
        with self._stop.interruptible():
            results = self._evaluate()
        if results:
            self._record(flatten_results_dict(dict(results)), iteration)
        if self._writers is not None:
            self._writers.evaluated = iteration
        comm.synchronize()

    def _record(self, metrics: Mapping[str, Any], iteration: int) -> None:
        storage = self.trainer.storage
        self.given = sorted(metrics)
        for name, value in metrics.items():
            try:
                number = float(value)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"the evaluator's result {name} is {value!r}: results are (nested) numbers"
                ) from error
            storage.put_scalar(name, number, smoothing_hint=False, cur_iter=iteration)


class BestCheckpoint(HookBase):
    """Save ``model_best.pth`` (weights and moving average) whenever a metric improves.

    The hook must be registered after the evaluations. On resume the best value is read from the
    file itself.

    Args:
        checkpointer: writes the file.
        evaluations: the hook that evaluates.
        metric: name in the event storage, such as ``bbox/AP``.
        is_chosen: the user named the metric, so an evaluation without it is an error.
    """

    def __init__(
        self,
        checkpointer: AtomicCheckpointer,
        evaluations: Evaluations,
        metric: str,
        *,
        is_chosen: bool = False,
    ) -> None:
        self._checkpointer = checkpointer
        self._evaluations = evaluations
        self._metric = metric
        self._is_chosen = is_chosen
        self._best = -math.inf
        self._seen = -1
        self._has_warned = False

    def before_train(self) -> None:
        """Read the best value so far on resume, and consider a missed evaluation done just now."""
        start = self.trainer.start_iter
        path = os.path.join(self._checkpointer.save_dir, f"{_BEST}.pth")
        if start == 0:
            return
        self._read_best(path)
        # Values that the checkpoint restored into the storage were considered before it was saved.
        # Only the missed evaluation of the last iteration (start - 1), if any, is new.
        latest = self.trainer.storage.latest().get(self._metric)
        self._seen = -1 if latest is None else min(latest[1], start - 2)
        self._update()

    def _read_best(self, path: str) -> None:
        if not os.path.isfile(path):
            return
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if saved["best_metric_name"] == self._metric:
                self._best = float(saved["best_metric"])
        except Exception as error:  # whatever a damaged file may raise
            logger.warning("Cannot read %s (%s); the best metric is reset", path, error)

    def after_step(self) -> None:
        """Save if this step's evaluation was the best."""
        self._update()

    def after_train(self) -> None:
        """Save if the last evaluation was the best."""
        self._update()

    def _update(self) -> None:
        # Metrics exist on rank 0 only, but saving is collective: all ranks must decide alike.
        latest = self.trainer.storage.latest().get(self._metric)
        found, given = comm.all_gather((latest, self._evaluations.given))[0]
        if given and self._metric not in given:
            self._complain(given)
        value, iteration = found or (math.nan, -1)
        if iteration <= self._seen or not math.isfinite(value):
            return
        self._seen = iteration
        if value <= self._best:
            return
        self._best = float(value)
        self._checkpointer.save_weights(
            _BEST,
            iteration=int(iteration),
            best_metric=self._best,
            best_metric_name=self._metric,
        )
        logger.info("New best %s: %.4f at iteration %d", self._metric, value, iteration)

    def _complain(self, given: list[str]) -> None:
        text = (
            f"train.best_metric={self._metric} is not one of the evaluation's metrics: "
            f"{', '.join(given)}"
        )
        if self._is_chosen:
            raise ConfigError(text)
        if not self._has_warned:
            logger.warning("%s; model_best.pth is not written", text)
        self._has_warned = True


class EpochCounter(HookBase):
    """Record ``epoch``, the number of passes over the data so far, at every iteration.

    Args:
        updates_per_epoch: number of iterations per pass over the data.
    """

    def __init__(self, updates_per_epoch: float) -> None:
        self._updates_per_epoch = updates_per_epoch

    def after_step(self) -> None:
        """Record the epoch after this step."""
        epoch = (self.trainer.iter + 1) / self._updates_per_epoch
        self.trainer.storage.put_scalar("epoch", epoch, smoothing_hint=False)


class RestoreRng(HookBase):
    """Restore the checkpoint's random state, as the last thing before the first step.

    Args:
        state: the state that the checkpointer loaded.
        is_resumed: the run is resumed, so a missing state is worth a warning.
    """

    def __init__(self, state: RngState, is_resumed: bool) -> None:
        self._state = state
        self._is_resumed = is_resumed

    def before_train(self) -> None:
        """Set the generators to the loaded state."""
        if not self._state.apply() and self._is_resumed:
            logger.warning(
                "The checkpoint has no random state for rank %d (another program or fewer "
                "processes saved it): the run continues, but its results will differ from those of "
                "an uninterrupted run",
                comm.get_rank(),
            )
