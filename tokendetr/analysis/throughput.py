"""Measure the throughput of a training loader, as a whole and stage by stage."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from detectron2.config import instantiate
from detectron2.data import DatasetFromList, MapDataset, build_batch_data_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import Dataset

from tokendetr.analysis.timing import Summary
from tokendetr.data.stream import build_train_loader
from tokendetr.data.workers import protect_workers
from tokendetr.io.progress import Progress

__all__ = ["TIME_LIMIT_S", "StageSpeed", "loader_speed", "stage_speeds"]

TIME_LIMIT_S = 90
"""Maximum time for measuring a stage, in seconds."""


@dataclass(frozen=True)
class StageSpeed:
    """Throughput of one stage of a loader.

    Attributes:
        name: name of the stage.
        milliseconds: time per item or batch, as a dict of a
            :class:`tokendetr.analysis.timing.Summary`.
        images_per_second: images per second in this process.
        startup_seconds: time until the first item.
    """

    name: str
    milliseconds: dict[str, float]
    images_per_second: float
    startup_seconds: float


class _Emptied(Dataset[list[int]]):
    """Data set that does another's work but returns nothing, so that sending takes no time."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> list[int]:
        self._dataset[index]
        return []


def loader_speed(node: Mapping[str, Any], repeats: int, *, warmup: int) -> list[StageSpeed]:
    """Measure a loader as configured.

    Args:
        node: ``dataloader.train`` of a config.
        repeats: number of batches to measure; fewer if they take longer than
            :data:`TIME_LIMIT_S`.
        warmup: number of batches before these.

    Raises:
        FileNotFoundError: the data set does not exist.
    """
    images = int(node["total_batch_size"]) // comm.get_world_size()
    name = f"loader, {node['num_workers']} workers, batch {images}"
    return [_speed(name, lambda: build_train_loader(node, seed=0), repeats, warmup, images)]


def stage_speeds(node: Mapping[str, Any], repeats: int, *, warmup: int) -> list[StageSpeed]:
    """Measure a loader's stages.

    These are: reading records, mapping them, loading with several numbers of workers, and loading
    without sending the result.

    Args:
        node: ``dataloader.train`` of a config, with ``dataset`` and ``mapper``.
        repeats: number of items or batches per stage; fewer if they take longer than
            :data:`TIME_LIMIT_S`.
        warmup: number of items or batches before these.

    Raises:
        ValueError: the loader does not consist of a data set and a mapper.
        FileNotFoundError: the data set does not exist.
    """
    if "dataset" not in node or "mapper" not in node:
        raise ValueError("the stages of dataloader.train need its keys dataset and mapper")
    records: Any = instantiate(node["dataset"])
    if isinstance(records, list):
        records = DatasetFromList(records, copy=False)
    mapper = instantiate(node["mapper"])
    mapped = MapDataset(records, mapper)
    batch_size, workers = int(node["total_batch_size"]), int(node["num_workers"])
    images = batch_size // comm.get_world_size()

    def order() -> Iterator[int]:
        return iter(TrainingSampler(len(records), seed=0))

    def loader(dataset: Any, num_workers: int) -> Callable[[], Iterable[Any]]:
        sampler = TrainingSampler(len(records), seed=0)
        return lambda: protect_workers(
            build_batch_data_loader(dataset, sampler, batch_size, num_workers=num_workers)
        )

    stages: list[tuple[str, Callable[[], Iterable[Any]], int]] = [
        ("records", lambda: (records[index] for index in order()), 1),
        ("records and mapper", lambda: (mapped[index] for index in order()), 1),
    ]
    for count in dict.fromkeys((0, 1, workers)):
        stages.append((f"loader, {count} workers, batch {images}", loader(mapped, count), images))
    name = f"loader, {workers} workers, batch {images}, nothing sent"
    stages.append((name, loader(_Emptied(mapped), workers), images))
    return [_speed(name, start, repeats, warmup, size) for name, start, size in stages]


def _speed(
    name: str, start: Callable[[], Iterable[Any]], repeats: int, warmup: int, images: int
) -> StageSpeed:
    began = time.perf_counter()
    items = iter(start())
    first = next(items, None)
    if first is None:
        raise ValueError(f"{name}: the data set is empty")
    startup = time.perf_counter() - began
    for _ in zip(range(warmup), items, strict=False):
        pass
    samples: list[float] = []
    began = last = time.perf_counter()
    for _ in Progress(range(repeats), desc=name, disable=not comm.is_main_process()):
        if next(items, None) is None:
            break
        now = time.perf_counter()
        samples.append(1e3 * (now - last))
        last = now
        if now - began > TIME_LIMIT_S:
            break
    summary = Summary.of(samples)
    per_second = images * len(samples) / (last - began)
    return StageSpeed(name, asdict(summary), per_second, startup)
