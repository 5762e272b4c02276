"""Dataset wrappers: serialized lists, mapped data sets, index streams, aspect-ratio batches."""

import copy
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch.utils.data as torchdata
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data.sampler import Sampler

__all__ = ["AspectRatioGroupedDataset", "DatasetFromList", "MapDataset", "ToIterableDataset"]

logger = logging.getLogger(__name__)


def _shard_for_worker(stream: Iterable[Any], chunk_size: int = 1) -> Iterator[Any]:
    """Yield this worker's part of a stream: every ``num_workers``-th chunk of ``chunk_size``.

    Outside a worker process the stream passes through whole.
    """
    worker = torchdata.get_worker_info()
    if worker is None or worker.num_workers == 1:
        yield from stream
        return
    iterator = iter(stream)
    for turn in itertools.cycle(range(worker.num_workers)):
        chunk = list(itertools.islice(iterator, chunk_size))
        if not chunk:
            return
        if turn == worker.id:
            yield from chunk


class _MappedIterable(torchdata.IterableDataset):
    """Apply a function to every item of an iterable data set and drop the ``None`` results."""

    def __init__(self, dataset: Iterable[Any], map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for item in self._dataset:
            mapped = self._map_func(item)
            if mapped is not None:
                yield mapped


class MapDataset(torchdata.Dataset):
    """Apply a function to the items of a data set.

    If the function returns ``None`` for an item of a map-style data set, a random item that has not
    failed so far replaces it. An iterable data set skips such items.
    """

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any]) -> Any:
        if isinstance(dataset, torchdata.IterableDataset):
            return _MappedIterable(dataset, map_func)
        return super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)
        self._rng = random.Random(42)
        self._failed: set[int] = set()

    def __getnewargs__(self) -> tuple[Any, Any]:
        return self._dataset, self._map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        """Return the mapped item, or the mapped item of a random replacement.

        Raises:
            ValueError: the function returned ``None`` for every item of the data set.
        """
        current = int(idx)
        for attempt in itertools.count(1):
            item = self._map_func(self._dataset[current])
            if item is not None:
                self._failed.discard(current)
                return item
            self._failed.add(current)
            current = self._replacement()
            if attempt >= 3:
                logger.warning(
                    "Element %s has no result after %s attempts: another one takes its place",
                    idx,
                    attempt,
                )
        raise AssertionError("itertools.count never ends")

    def _replacement(self) -> int:
        if len(self._failed) >= len(self):
            raise ValueError(
                f"The mapper returned None for each of the {len(self)} items of the data set: "
                "nothing is left to load. Check the mapper and the records."
            )
        while True:
            candidate = self._rng.randrange(len(self))
            if candidate not in self._failed:
                return candidate


class _SerializedList:
    """A read-only list stored as one byte array, so that worker processes share its memory."""

    def __init__(self, items: Sequence[Any]) -> None:
        logger.info("Packing %d elements into one array, which processes share", len(items))
        encoded = [
            np.frombuffer(pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL), dtype=np.uint8)
            for item in items
        ]
        self._ends = np.cumsum([len(item) for item in encoded], dtype=np.int64)
        self._bytes = np.concatenate(encoded) if encoded else np.zeros(0, dtype=np.uint8)
        logger.info("Serialized dataset takes %.2f MiB", len(self._bytes) / 1024**2)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        size = len(self._ends)
        if not -size <= idx < size:
            raise IndexError(f"index {idx} is out of range for a list of {size} elements")
        idx = idx % size
        start = 0 if idx == 0 else int(self._ends[idx - 1])
        return pickle.loads(self._bytes[start : int(self._ends[idx])].data)  # noqa: S301 (our own)


class DatasetFromList(torchdata.Dataset):
    """Map-style data set over a list.

    Args:
        lst: the items.
        copy: hand out deep copies, so that a mapper may edit its input in place. Serialized items
            are fresh objects anyway.
        serialize: keep the items as bytes, which worker processes share instead of duplicating; or
            a function that turns the list into such a container.
    """

    def __init__(
        self,
        lst: list[Any],
        copy: bool = True,
        serialize: bool | Callable[[Sequence[Any]], Any] = True,
    ) -> None:
        self._copy = copy
        self._serialize = bool(serialize)
        self._items: Any = lst
        if callable(serialize):
            self._items = serialize(lst)
        elif serialize:
            self._items = _SerializedList(lst)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, idx: int) -> Any:
        item = self._items[idx]
        return copy.deepcopy(item) if self._copy and not self._serialize else item


class ToIterableDataset(torchdata.IterableDataset):
    """Iterate over a map-style data set in the order of a sampler shared among workers.

    Args:
        dataset: a map-style data set.
        sampler: yields indices, a finite or an endless stream.
        shard_sampler: give each worker process its own part of the stream; False if the sampler
            already does.
        shard_chunk_size: number of consecutive indices that go to one worker.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: Sampler,
        shard_sampler: bool = True,
        shard_chunk_size: int = 1,
    ) -> None:
        assert not isinstance(dataset, torchdata.IterableDataset), dataset
        assert isinstance(sampler, Sampler), sampler
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        indices: Iterable[int] = self.sampler
        if self.shard_sampler:
            indices = _shard_for_worker(indices, self.shard_chunk_size)
        for idx in indices:
            yield self.dataset[idx]


class AspectRatioGroupedDataset(torchdata.IterableDataset):
    """Batches of only landscape or only portrait images, which keeps padding small.

    Items are dicts with ``width`` and ``height``. The order inside each group is kept; a batch is
    handed out as soon as its group is full.

    Args:
        dataset: an iterable of such dicts.
        batch_size: items per batch.
    """

    def __init__(self, dataset: Iterable[dict[str, Any]], batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for item in self.dataset:
            bucket = self._buckets[0 if item["width"] > item["height"] else 1]
            bucket.append(item)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                # Emptied before the batch leaves: the consumer may stop at the yield.
                del bucket[:]
                yield batch
