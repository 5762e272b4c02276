"""Storage for the metrics of a training run, and writers that report them."""
# Over 350 lines: upstream has all of this in one module, and users find it there.

import datetime
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
]

_CURRENT_STORAGE_STACK: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """Return the storage of the innermost ``with EventStorage(...)`` block."""
    assert len(_CURRENT_STORAGE_STACK), (
        "get_event_storage() has none to return outside of `with EventStorage(...):`"
    )
    return _CURRENT_STORAGE_STACK[-1]


def has_event_storage() -> bool:
    """Return True inside a ``with EventStorage(...)`` block."""
    return len(_CURRENT_STORAGE_STACK) > 0


class EventStorage:
    """Scalars with their history, images and histograms of the current iteration.

    Args:
        start_iter: iteration to start from.
    """

    def __init__(self, start_iter: int = 0) -> None:
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._iter = start_iter
        self._current_prefix = ""
        self._vis_data: list[tuple[str, Tensor, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def put_image(self, img_name: str, img_tensor: Tensor) -> None:
        """Add an image [channel, height, width], uint8 or float in [0, 1], RGB.

        For the writers that show images.
        """
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_scalar(
        self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Add a scalar.

        Args:
            name: its name; the current :meth:`name_scope` goes in front.
            value: a number, or a tensor with one element.
            smoothing_hint: let writers show a median over a window; the same for all values of a
                name.
            cur_iter: iteration of the value; by default the storage's.
        """
        name = self._current_prefix + name
        iteration = self._iter if cur_iter is None else cur_iter
        value = float(value)
        self._history[name].update(value, iteration)
        self._latest_scalars[name] = (value, iteration)
        existing = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert existing == smoothing_hint, f"{name} was put before with smoothing_hint={existing}"

    def put_scalars(
        self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any
    ) -> None:
        """Add several scalars by keyword."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_histogram(self, hist_name: str, hist_tensor: Tensor, bins: int = 1000) -> None:
        """Add a histogram over the values of a tensor."""
        low, high = float(hist_tensor.min()), float(hist_tensor.max())
        counts = torch.histc(hist_tensor, bins=bins)
        edges = torch.linspace(start=low, end=high, steps=bins + 1, dtype=torch.float32)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": low,
                "max": high,
                "num": len(hist_tensor),
                "sum": float(hist_tensor.sum()),
                "sum_squares": float(torch.sum(hist_tensor**2)),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": counts.tolist(),
                "global_step": self._iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """Return the history of a scalar.

        Raises:
            KeyError: there is no such scalar.
        """
        found = self._history.get(name, None)
        if found is None:
            raise KeyError(f"the storage has no history of {name}")
        return found

    def histories(self) -> dict[str, HistoryBuffer]:
        """Return all histories by name."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Return the last (value, iteration) of every scalar."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Return :meth:`latest`, as medians for the scalars with a smoothing hint.

        Medians are over the last ``window_size`` iterations.
        """
        result = {}
        for name, (value, iteration) in self._latest_scalars.items():
            if self._smoothing_hints[name]:
                value = self._history[name].median(self.count_samples(name, window_size))
            result[name] = (value, iteration)
        return result

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Return how many values of a scalar fall into its last ``window_size`` iterations."""
        values = self._history[name].values()
        samples = 0
        for _, iteration in reversed(values):
            if iteration <= values[-1][1] - window_size:
                break
            samples += 1
        return samples

    def smoothing_hints(self) -> dict[str, bool]:
        """Return the hint of every scalar."""
        return self._smoothing_hints

    def step(self) -> None:
        """Go to the next iteration; images and histograms stay until a writer clears them."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration; after training, the number of iterations."""
        return self._iter

    @iter.setter
    def iter(self, val: int) -> None:
        self._iter = int(val)

    @property
    def iteration(self) -> int:
        """Alias of :attr:`iter`."""
        return self._iter

    def __enter__(self) -> "EventStorage":
        _CURRENT_STORAGE_STACK.append(self)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        assert _CURRENT_STORAGE_STACK[-1] is self
        _CURRENT_STORAGE_STACK.pop()

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Within the context, put ``name/`` before the names of scalars."""
        previous = self._current_prefix
        self._current_prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._current_prefix = previous

    def clear_images(self) -> None:
        """Forget the images; writers do this after writing them."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forget the histograms; writers do this after writing them."""
        self._histograms = []


class EventWriter:
    """Base class of writers, which read the current storage."""

    def write(self) -> None:
        """Report the new contents of the storage."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the resources of the writer."""


class JSONWriter(EventWriter):
    """Append scalars to a file with one JSON object per line; each has ``iteration``.

    Args:
        json_file: the file; an existing one is continued.
        window_size: iterations of the median for scalars with a smoothing hint.
    """

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        self._file_handle = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        """Write the scalars added since the last call."""
        storage = get_event_storage()
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(
            self._window_size
        ).items():
            if iteration > self._last_write:
                rows[iteration][name] = value
        if rows:
            self._last_write = max(rows)
        for iteration, scalars in rows.items():
            row = {**scalars, "iteration": iteration}
            self._file_handle.write(json.dumps(row, sort_keys=True) + "\n")
        self._file_handle.flush()
        try:
            os.fsync(self._file_handle.fileno())
        except (AttributeError, OSError):
            return

    def close(self) -> None:
        """Close the file."""
        self._file_handle.close()


class TensorboardXWriter(EventWriter):
    """Write scalars, images and histograms for TensorBoard.

    Args:
        log_dir: folder of the event files.
        window_size: iterations of the median for scalars with a smoothing hint.
        kwargs: passed to ``torch.utils.tensorboard.SummaryWriter``.
    """

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        self._window_size = window_size
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard.writer import SummaryWriter

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        """Write new contents, and clear images and histograms."""
        storage = get_event_storage()
        newest = self._last_write
        for name, (value, iteration) in storage.latest_with_smoothing_hint(
            self._window_size
        ).items():
            if iteration > self._last_write:
                self._writer.add_scalar(name, value, iteration)
                newest = max(newest, iteration)
        self._last_write = newest
        for name, image, step in storage._vis_data:
            self._writer.add_image(name, image, step)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self) -> None:
        """Close the event file, if there is one."""
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Log one line with progress, losses, times, learning rate and memory.

    Args:
        max_iter: number of iterations, for the time that remains.
        window_size: iterations over which losses and data time are averaged.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        self.logger = logging.getLogger(__name__)
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None

    def _get_eta(self, storage: EventStorage) -> str | None:
        """Return the remaining time as text; it is also put into the storage as ``eta_seconds``."""
        if self._max_iter is None:
            return ""
        iteration = storage.iter
        remaining = self._max_iter - iteration - 1
        try:
            eta_seconds = storage.history("time").median(1000) * remaining
            storage.put_scalar("eta_seconds", eta_seconds, smoothing_hint=False)
            return str(datetime.timedelta(seconds=int(eta_seconds)))
        except KeyError:
            # no iteration was timed yet: estimate from the last call
            eta_string = None
            now = time.perf_counter()
            if self._last_write is not None and iteration > self._last_write[0]:
                each = (now - self._last_write[1]) / (iteration - self._last_write[0])
                eta_string = str(datetime.timedelta(seconds=int(each * remaining)))
            self._last_write = (iteration, now)
            return eta_string

    def _medians(self, storage: EventStorage, part: str) -> str:
        """Return the medians of all scalars whose name contains ``part``."""
        return "  ".join(
            f"{name}: {history.median(storage.count_samples(name, self._window_size)):.4g}"
            for name, history in storage.histories().items()
            if part in name
        )

    def write(self) -> None:
        """Log the line; nothing after the last iteration."""
        storage = get_event_storage()
        iteration = storage.iter
        if iteration == self._max_iter:
            return
        histories = storage.histories()
        times = ""
        if "time" in histories:
            history = histories["time"]
            times += f"time: {history.global_avg():.4f}  last_time: {history.latest():.4f}  "
        if "data_time" in histories:
            history = histories["data_time"]
            average = history.avg(storage.count_samples("data_time", self._window_size))
            times += f"data_time: {average:.4f}  last_data_time: {history.latest():.4f}  "
        lr = f"{histories['lr'].latest():.5g}" if "lr" in histories else "N/A"
        memory = ""
        if torch.cuda.is_available():
            memory = f"max_mem: {torch.cuda.max_memory_allocated() / 1024.0**2:.0f}M"
        eta = self._get_eta(storage)
        self.logger.info(
            f" {f'eta: {eta}  ' if eta else ''}iter: {iteration}  "
            f"{self._medians(storage, 'loss')}  {self._medians(storage, '[metric]')}  "
            f"{times} lr: {lr}  {memory}"
        )
