"""Training loader whose position is part of the checkpoint.

A seed determines the sequence of batches of a run: which images, in which order, with which
augmentations. The training process computes the order from indices alone, and every sample is
augmented with generators seeded by (seed, position in the sequence). So neither the number of
worker processes nor how far they have read ahead changes a sample, and resuming after batch n
means starting the same sequence at batch n.
"""

import contextlib
import copy
import inspect
import itertools
import logging
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch.utils.data as torchdata
from detectron2.config import instantiate
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from detectron2.utils.registry import locate
from detectron2.utils.serialize import PicklableWrapper
from omegaconf import DictConfig

from tokendetr.config.parts import require_methods
from tokendetr.config.targets import parameters_of
from tokendetr.data.named_errors import NamedErrors, describe_record
from tokendetr.data.random_state import preserved_rng, seeded_rng
from tokendetr.data.workers import obey_parent
from tokendetr.errors import ConfigError, SampleError

__all__ = ["StreamLoader", "build_train_loader"]

logger = logging.getLogger(__name__)

_MAX_REPLACEMENTS = 20


class _StreamDataset(torchdata.Dataset):
    """Data set of samples, indexed by (position in the stream, index of the record).

    Args:
        records: a map-style data set.
        mapper: converts a record to a sample; None returns records as they are.
        seed: the run's seed.
    """

    def __init__(self, records: Any, mapper: Callable[[Any], Any] | None, seed: int) -> None:
        self.records = records
        self.mapper = None if mapper is None else PicklableWrapper(NamedErrors(mapper))
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """Return a sample; if the mapper returns None for a record, the next one is taken.

        Raises:
            SampleError: a record cannot be read, or the mapper returned None for 20 in a row.
        """
        position, index = key
        if self.mapper is None:
            return self.records[index]
        for attempt in range(_MAX_REPLACEMENTS):
            record = self.records[(index + attempt) % len(self.records)]
            with seeded_rng(self.seed, position, attempt):
                sample = self.mapper(record)
            if sample is not None:
                return sample
            logger.warning(
                "The mapper returned None for %s; taking the next", describe_record(record)
            )
        raise SampleError(
            f"the mapper returned None for {_MAX_REPLACEMENTS} records in a row, "
            f"the last one {describe_record(record)}"
        )


class _BatchKeys(torchdata.Sampler):
    """Sampler of one rank's batches as lists of (position, index), from a given batch on.

    Args:
        indices: this rank's infinite stream of record indices.
        size: number of records.
        batch_size: records per batch and rank.
        skip: number of batches to skip at the start.
        group_of: index -> group; all records of a batch are of one group. None: no grouping.
    """

    def __init__(
        self,
        indices: Iterable[int],
        size: int,
        batch_size: int,
        skip: int,
        group_of: Callable[[int], int] | None,
    ) -> None:
        self.indices = indices
        self.size = size
        self.batch_size = batch_size
        self.skip = skip
        self.group_of = group_of

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._batches(), self.skip, None)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        groups: dict[int, list[tuple[int, int]]] = {}
        rank, world_size = comm.get_rank(), comm.get_world_size()
        for count, index in enumerate(self.indices):
            # Positions count over all ranks, so a sample does not depend on the number of ranks.
            key = (count * world_size + rank, self._checked(index))
            group = groups.setdefault(0 if self.group_of is None else self.group_of(key[1]), [])
            group.append(key)
            if len(group) == self.batch_size:
                yield group.copy()
                group.clear()

    def _checked(self, index: Any) -> int:
        with contextlib.suppress(TypeError):
            if 0 <= (number := operator.index(index)) < self.size:
                return number
        raise ConfigError(
            f"dataloader.train.sampler gives {index!r}, which is not an index of one of the "
            f"{self.size} records"
        )


class StreamLoader:
    """Infinite loader of training batches that can start anywhere in its sequence.

    Arguments are those of ``detectron2.data.build_detection_train_loader``.

    Args:
        dataset: a list of records or a map-style data set.
        mapper: converts a record to a model's input; None returns records as they are.
        make_sampler: seed -> sampler of this rank's infinite stream of indices.
        seed: seed of the order and of all augmentations; equal on all ranks.
        total_batch_size: images per update, over all ranks and micro-batches.
        micro_batches: batches per update, of equal size.
        aspect_ratio_grouping: make batches of landscape or of portrait images only.
        num_workers: number of loader processes.
        collate_fn: converts a list of samples to a batch; None returns the list.
        **options: further arguments of ``torch.utils.data.DataLoader``.

    Raises:
        ConfigError: the batch size is not divisible by the number of ranks and micro-batches, or
            ``collate_fn`` is not callable.
        TypeError: ``DataLoader`` does not know an option.
    """

    def __init__(
        self,
        *,
        dataset: Any,
        mapper: Callable[[Any], Any] | None,
        make_sampler: Callable[[int], Iterable[int]],
        seed: int,
        total_batch_size: int,
        micro_batches: int = 1,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **options: Any,
    ) -> None:
        shares = comm.get_world_size() * micro_batches
        if total_batch_size <= 0 or total_batch_size % shares:
            raise ConfigError(
                f"total_batch_size={total_batch_size} must be a positive multiple of the number "
                "of processes times train.grad_accum_steps = "
                f"{comm.get_world_size()} x {micro_batches}"
            )
        # Here, for a loader is made when the training reads its first batch.
        inspect.signature(torchdata.DataLoader).bind_partial(**options)
        if collate_fn is not None and not callable(collate_fn):
            raise ConfigError(f"collate_fn={collate_fn!r} is not a function")
        self.batch_size = total_batch_size // shares
        self.total_batch_size = total_batch_size
        self.records = DatasetFromList(dataset, copy=True) if isinstance(dataset, list) else dataset
        self.seed = seed
        self.batches_read = 0
        self._mapper = mapper
        self._make_sampler = make_sampler
        self._landscape = _landscape(dataset) if aspect_ratio_grouping else None
        self._num_workers = num_workers
        self._collate = collate_fn or trivial_batch_collator
        self._options = options

    @property
    def updates_per_epoch(self) -> float:
        """Number of updates per pass over the data set."""
        return len(self.records) / self.total_batch_size

    def _group_of(self, index: int) -> int:
        assert self._landscape is not None
        return self._landscape[index]

    def __iter__(self) -> Iterator[Any]:
        """Yield batches from the current position on."""
        keys = _BatchKeys(
            self._make_sampler(self.seed),
            len(self.records),
            self.batch_size,
            self.batches_read,
            None if self._landscape is None else self._group_of,
        )
        loader = torchdata.DataLoader(
            _StreamDataset(self.records, self._mapper, self.seed),
            batch_sampler=keys,
            num_workers=self._num_workers,
            collate_fn=self._collate,
            worker_init_fn=obey_parent,
            **self._options,
        )
        # The loader draws a seed for its workers; the model's generators must not advance by it.
        with preserved_rng():
            batches = iter(loader)
        for batch in batches:
            self.batches_read += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the position in the sequence: the seed, and the images read over all ranks."""
        return {
            "seed": self.seed,
            "images": self.batches_read * self.batch_size * comm.get_world_size(),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a saved position; takes effect when iteration starts.

        If the number of processes or the batch size has changed, the position is rounded down to a
        whole batch.
        """
        self.seed = int(state["seed"])
        self.batches_read = int(state["images"]) // (self.batch_size * comm.get_world_size())


def _landscape(dataset: Any) -> list[bool]:
    """Return for each record whether it is wider than high.

    Raises:
        ValueError: a record has no size.
    """
    records = dataset if isinstance(dataset, list) else [dataset[i] for i in range(len(dataset))]
    try:
        return [record["width"] > record["height"] for record in records]
    except (KeyError, TypeError) as error:
        raise ValueError(
            "grouping batches by aspect ratio needs 'width' and 'height' in every record; set "
            "dataloader.train.aspect_ratio_grouping=False, or add them"
        ) from error


def build_train_loader(node: Any, *, seed: int, micro_batches: int = 1) -> Any:
    """Build the loader that ``dataloader.train`` describes.

    Args:
        node: a lazy call. A call of ``build_detection_train_loader`` becomes a
            :class:`StreamLoader` with the same arguments. Any other is instantiated as it is; its
            order then starts over on resume.
        seed: seed of order and augmentations; negative for a random one. Rank 0's is used.
        micro_batches: ``train.grad_accum_steps``.

    Raises:
        ValueError: several micro-batches are requested of another loader.
    """
    seed = comm.all_gather(seed)[0] if seed >= 0 else comm.shared_random_seed()
    target = node.get("_target_")
    target = locate(target) if isinstance(target, str) else target
    if target is not build_detection_train_loader:
        return _foreign_loader(node, micro_batches)
    arguments = {str(key): node[key] for key in node if key != "_target_"}
    sampler = arguments.pop("sampler", None)
    dataset = instantiate(arguments.pop("dataset"))
    if isinstance(dataset, torchdata.IterableDataset):
        return _foreign_loader(node, micro_batches)
    mapper = instantiate(arguments.pop("mapper"))
    if mapper is not None:
        require_methods("dataloader.train.mapper", mapper, "a mapper of records", "__call__")
    # Every sample has its own seed, and the stream never ends, so these have no meaning here.
    for name in ("seed", "drop_last", "worker_init_fn"):
        arguments.pop(name, None)
    per_process = arguments.pop("single_gpu_batch_size", None)
    if per_process:
        arguments["total_batch_size"] = per_process * comm.get_world_size() * micro_batches
    options = {key: instantiate(value) for key, value in arguments.items()}
    return StreamLoader(
        dataset=dataset,
        mapper=mapper,
        make_sampler=_sampler_maker(sampler, len(dataset)),
        seed=seed,
        micro_batches=micro_batches,
        **options,
    )


def _sampler_maker(node: Any, size: int) -> Callable[[int], Iterable[int]]:
    if node is None:
        return lambda seed: TrainingSampler(size, seed=seed)
    if not isinstance(node, DictConfig):
        if isinstance(node, str) or not hasattr(node, "__iter__"):
            raise ConfigError(f"dataloader.train.sampler={node!r} gives no indices of records")
        return lambda seed: node

    def make(seed: int) -> Iterable[int]:
        own = copy.deepcopy(node)
        if "seed" in parameters_of(own) and own.get("seed", None) is None:
            own.seed = seed
        indices: Iterable[int] = instantiate(own)
        require_methods("dataloader.train.sampler", indices, "a sampler of indices", "__iter__")
        return indices

    return make


def _foreign_loader(node: Any, micro_batches: int) -> Any:
    if micro_batches != 1:
        raise ValueError(
            "train.grad_accum_steps needs dataloader.train to be a lazy call of "
            "detectron2.data.build_detection_train_loader over a map-style data set"
        )
    logger.warning(
        "dataloader.train is not detectron2's build_detection_train_loader over a map-style data "
        "set: resuming will restart the order of its data"
    )
    loader = instantiate(node)
    require_methods("dataloader.train", loader, "a loader", "__iter__")
    return loader
