"""Write metrics: kills and resumes leave no gaps or repeats, and a failing writer no failed run."""

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    TensorboardXWriter,
    get_event_storage,
)

from tokendetr.io.atomic import write_atomically

__all__ = [
    "EpochPrinter",
    "MetricsFile",
    "Writers",
    "forget_old_metrics",
    "metrics_state",
    "recorded_iterations",
    "recorded_rows",
    "restore_metrics",
    "tensorboard_writer",
]

logger = logging.getLogger(__name__)

_WINDOW = 20
KEPT_VALUES = 1000
"""Values of a metric that a training keeps in memory; writers look at the last few."""


def metrics_state(storage: EventStorage) -> dict[str, Any]:
    """Return the recent metrics for a checkpoint: those that writers still smooth over."""
    hints = storage.smoothing_hints()
    return {
        name: {"smooth": hints[name], "values": [list(v) for v in history.values()[-_WINDOW:]]}
        for name, history in storage.histories().items()
    }


def forget_old_metrics(storage: EventStorage) -> None:
    """Keep the last :data:`KEPT_VALUES` of every metric; its average over all of them is unchanged.

    A storage keeps a million of each, which in a long training with tens of losses are hundreds of
    megabytes.
    """
    for history in storage.histories().values():
        del history.values()[:-KEPT_VALUES]


def restore_metrics(storage: EventStorage, state: dict[str, Any]) -> None:
    """Put the metrics of :func:`metrics_state` into a new storage."""
    for name, saved in state.items():
        try:
            is_smooth = bool(saved["smooth"])
            values = [(float(value), int(iteration)) for value, iteration in saved["values"]]
        except (KeyError, TypeError, ValueError) as error:
            logger.warning("The checkpoint's values of %s cannot be used: %r", name, error)
            continue
        for value, iteration in values:
            storage.put_scalar(name, value, smoothing_hint=is_smooth, cur_iter=iteration)


def recorded_iterations(path: str) -> list[int]:
    """Return the iterations of a file of metrics, in its order; damaged lines are skipped."""
    return [row["iteration"] for row in recorded_rows(path)]


def recorded_rows(path: str) -> list[dict[str, Any]]:
    """Return the rows of a file of metrics; a missing file has none.

    Damaged lines, and values that are not numbers, are left out.
    """
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("iteration")) is int:
            numbers = {name: value for name, value in row.items() if _is_number(value)}
            if "iteration" in numbers:
                rows.append(numbers)
    return rows


def _is_number(value: Any) -> bool:
    """Return whether a value of a JSON file can be drawn: no text, list, or endless integer."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 1 << 63)


class MetricsFile(EventWriter):
    """Writer of ``metrics.json``: one JSON object per iteration and line, without repetitions.

    On resume, lines from before ``start_iter`` are kept; later, repeated and damaged ones are
    removed. A line that cannot be written completely is removed again.

    Args:
        path: path of the file.
        start_iter: first iteration of this part of the run; 0 empties the file.
        window_size: iterations of the median for scalars with a smoothing hint.
    """

    def __init__(self, path: str, start_iter: int = 0, window_size: int = _WINDOW) -> None:
        self._path = path
        self._window_size = window_size
        self._written = -1
        rows = {r["iteration"]: r for r in recorded_rows(path) if r["iteration"] < start_iter}
        if os.path.exists(path):
            lines = [json.dumps(rows[i], sort_keys=True) + "\n" for i in sorted(rows)]
            write_atomically(path, "".join(lines).encode())
        self._written = max(rows, default=-1)

    def write(self) -> None:
        """Write the scalars that are new since the last call.

        Raises:
            OSError: the lines could not be written; the file is unchanged.
        """
        storage = get_event_storage()
        rows: dict[int, dict[str, Any]] = defaultdict(dict)
        latest = storage.latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._written:
                rows[iteration][name] = value
        if not rows:
            return
        lines = [
            json.dumps({**rows[i], "iteration": i}, sort_keys=True) + "\n" for i in sorted(rows)
        ]
        self._append("".join(lines).encode())
        self._written = max(rows)

    def _append(self, content: bytes) -> None:
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(handle).st_size
            try:
                view = memoryview(content)
                while view:
                    view = view[os.write(handle, view) :]
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)


def tensorboard_writer(folder: str, start_iter: int) -> TensorboardXWriter:
    """Return a TensorBoard writer that discards older events from ``start_iter`` on.

    A killed run may have written events after its last checkpoint; the resumed one writes them
    again.
    """
    options = {"purge_step": start_iter} if start_iter > 0 else {}
    return TensorboardXWriter(folder, **options)


class Writers(HookBase):
    """Run writers every ``period`` iterations, after evaluations, and at the end.

    If a writer fails, a warning is logged once, and it is called again next time; the run
    continues.

    Args:
        make: start_iter -> the writers; called when training starts.
        period: in iterations; 0 to write only after evaluations and at the end.
        path: path of ``metrics.json``.
        on_evaluated: called with the iteration of an evaluation once its results are written.

    Attributes:
        evaluated: iteration of an evaluation whose results are still to be written, else None.
    """

    def __init__(
        self,
        make: Callable[[int], Sequence[EventWriter]],
        period: int,
        path: str,
        on_evaluated: Callable[[int], None],
    ) -> None:
        self._make = make
        self._period = period
        self._path = path
        self._on_evaluated = on_evaluated
        self._writers: Sequence[EventWriter] = ()
        self._failed: set[str] = set()
        self.evaluated: int | None = None

    def before_train(self) -> None:
        """Open the writers, and write the line that a killed run did not get to."""
        start = self.trainer.start_iter
        self._writers = self._make(start)
        if start == 0:
            return
        is_due = self._period > 0 and start % self._period == 0
        missed = is_due and start - 1 not in recorded_iterations(self._path)
        if missed or self.evaluated is not None:
            self._write(start - 1)

    def after_step(self) -> None:
        """Write if it is due."""
        iteration = self.trainer.iter
        is_due = self._period > 0 and (iteration + 1) % self._period == 0
        if is_due or iteration == self.trainer.max_iter - 1 or self.evaluated is not None:
            self._write(iteration)

    def after_train(self) -> None:
        """Write the rest, and close the writers."""
        self._write(self.trainer.iter)
        self.abandon()

    def abandon(self) -> None:
        """Close the writers, also after an error."""
        for writer in self._writers:
            self._guarded(writer, writer.close)
        self._writers = ()

    def _write(self, iteration: int) -> None:
        storage = self.trainer.storage
        shown, storage.iter = storage.iter, iteration
        failed = [w for w in self._writers if not self._guarded(w, w.write)]
        storage.iter = shown
        if self.evaluated is not None and not any(isinstance(w, MetricsFile) for w in failed):
            self._on_evaluated(self.evaluated)
            self.evaluated = None

    def _guarded(self, writer: EventWriter, action: Callable[[], None]) -> bool:
        name = type(writer).__name__
        try:
            action()
        except Exception as error:
            if name not in self._failed:
                logger.warning(
                    "%s failed (%s: %s); its metrics may be incomplete, training continues",
                    name,
                    type(error).__name__,
                    error,
                )
            self._failed.add(name)
            return False
        return True


class _WithEpoch(logging.LoggerAdapter):
    """Insert the epoch after the iteration of upstream's log line."""

    def __init__(self, target: logging.Logger, updates_per_epoch: float) -> None:
        super().__init__(target, {})
        self._updates_per_epoch = updates_per_epoch

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, Any]:
        def add_epoch(match: re.Match[str]) -> str:
            epoch = (int(match.group(1)) + 1) / self._updates_per_epoch
            return f"{match.group(0)}  epoch: {epoch:.2f}"

        return re.sub(r"\biter: (\d+)", add_epoch, str(msg), count=1), kwargs


class EpochPrinter(CommonMetricPrinter):
    """detectron2's log line with ``epoch: 0.85`` after the iteration.

    Args:
        max_iter: number of iterations, for the remaining time.
        updates_per_epoch: iterations per pass over the data; None leaves the line unchanged.
    """

    def __init__(self, max_iter: int, updates_per_epoch: float | None) -> None:
        super().__init__(max_iter)
        if updates_per_epoch is not None:
            self.logger: Any = _WithEpoch(self.logger, updates_per_epoch)
