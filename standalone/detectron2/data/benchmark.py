"""Measure the speed of a data set, its mapper and its loader, under detectron2's names."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch.utils.data as torchdata
from detectron2.utils import comm

from .build import build_batch_data_loader
from .common import DatasetFromList, MapDataset
from .samplers import TrainingSampler

__all__ = ["DataLoaderBenchmark", "iter_benchmark"]

logger = logging.getLogger(__name__)


def iter_benchmark(
    iterator: Iterator[Any], num_iter: int, warmup: int = 5, max_time_seconds: float = 60
) -> tuple[float, list[float]]:
    """Time an iterator.

    Args:
        iterator: yields at least ``warmup + 1`` items.
        num_iter: maximum number of timed items.
        warmup: untimed items before them.
        max_time_seconds: stop after this time.

    Returns:
        The mean seconds of an item, and the seconds of each.
    """
    for _ in itertools.islice(iterator, warmup):
        pass
    seconds: list[float] = []
    begin = last = time.perf_counter()
    for _ in itertools.islice(iterator, num_iter):
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
        if now - begin > max_time_seconds:
            break
    return sum(seconds) / len(seconds), seconds


class _Emptied(torchdata.Dataset):
    """A data set that does its work and returns nothing, so that no data cross processes."""

    def __init__(self, dataset: torchdata.Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> list[int]:
        self.dataset[index]
        return [0]


class DataLoaderBenchmark:
    """Time the parts of a training loader separately.

    Args:
        dataset: records, as ``get_detection_dataset_dicts`` returns them.
        mapper: makes a sample of a record.
        sampler: yields indices; an endless shuffling :class:`TrainingSampler` if None.
        total_batch_size: over all processes.
        num_workers: of each loader.
        max_time_seconds: limit of one measurement.
    """

    def __init__(
        self,
        dataset: Sequence[dict[str, Any]],
        *,
        mapper: Callable[[dict[str, Any]], Any],
        sampler: torchdata.Sampler | None = None,
        total_batch_size: int,
        num_workers: int = 0,
        max_time_seconds: int = 90,
    ) -> None:
        self.mapper = mapper
        self.dataset = DatasetFromList(list(dataset), copy=False)
        self.sampler = TrainingSampler(len(self.dataset)) if sampler is None else sampler
        self.total_batch_size = total_batch_size
        self.num_workers = num_workers
        self.per_gpu_batch_size = total_batch_size // comm.get_world_size()
        self.max_time_seconds = max_time_seconds

    def _benchmark(self, iterator: Iterator[Any], count: int, warmup: int, what: str) -> None:
        mean, every = iter_benchmark(iterator, count, warmup, self.max_time_seconds)
        low, middle, high = np.percentile(every, [1, 50, 99])
        logger.info(
            "%s: %.4g iterations/s; seconds at 1, 50 and 99 %%: %.4g, %.4g, %.4g",
            what,
            1 / mean,
            low,
            middle,
            high,
        )

    def _loader(self, dataset: torchdata.Dataset) -> Iterator[Any]:
        loader = build_batch_data_loader(
            dataset, self.sampler, self.total_batch_size, num_workers=self.num_workers
        )
        return iter(loader)

    def benchmark_dataset(self, num_iter: int, warmup: int = 5) -> None:
        """Time the records alone."""
        records = (self.dataset[index] for index in self.sampler)
        self._benchmark(records, num_iter, warmup, "records")

    def benchmark_mapper(self, num_iter: int, warmup: int = 5) -> None:
        """Time the mapper in this process."""
        samples = (self.mapper(self.dataset[index]) for index in self.sampler)
        self._benchmark(samples, num_iter, warmup, "mapper")

    def benchmark_workers(self, num_iter: int, warmup: int = 10) -> None:
        """Time the whole loader, without workers and with them."""
        dataset, workers = MapDataset(self.dataset, self.mapper), self.num_workers
        for self.num_workers in sorted({0, workers}):
            what = f"loader with {self.num_workers} workers"
            self._benchmark(self._loader(dataset), num_iter * (self.num_workers or 1), warmup, what)

    def benchmark_IPC(self, num_iter: int, warmup: int = 10) -> None:
        """Time the loader with workers that send nothing, which leaves out communication."""
        dataset = _Emptied(MapDataset(self.dataset, self.mapper))
        self._benchmark(self._loader(dataset), num_iter, warmup, "loader that sends nothing")

    def benchmark_distributed(self, num_iter: int, warmup: int = 10) -> None:
        """Time the whole loader in every process, all starting together."""
        batches = self._loader(MapDataset(self.dataset, self.mapper))
        comm.synchronize()
        what = f"loader of {comm.get_world_size()} processes"
        self._benchmark(batches, num_iter, warmup, what)
