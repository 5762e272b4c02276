"""Samplers across ranks: endless streams for training, fixed shards for evaluation."""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.utils import comm
from torch.utils.data.sampler import Sampler

__all__ = [
    "InferenceSampler",
    "RandomSubsetTrainingSampler",
    "RepeatFactorTrainingSampler",
    "TrainingSampler",
]

logger = logging.getLogger(__name__)


def _shared_seed(seed: int | None) -> int:
    return comm.shared_random_seed() if seed is None else int(seed)


class _EndlessSampler(Sampler):
    """Endless stream of indices, equal on all ranks, of which each rank reads its share."""

    def __init__(self) -> None:
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        raise NotImplementedError


class TrainingSampler(_EndlessSampler):
    """Endless passes over all indices, reshuffled in each pass.

    Conceptually all ranks produce the same stream ``shuffle(range(size)) + shuffle(range(size))
    + ...`` and rank ``r`` takes every ``world_size``-th element of it, from the ``r``-th on.

    Args:
        size: number of items of the data set.
        shuffle: shuffle each pass.
        seed: seed of the shuffle, equal on all ranks; None agrees on a random one.

    Raises:
        TypeError: ``size`` is not an int.
        ValueError: ``size`` is not positive.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        super().__init__()
        if not isinstance(size, int):
            raise TypeError(f"size of a TrainingSampler is an int, not {size!r}.")
        if size <= 0:
            raise ValueError(f"size of a TrainingSampler is positive, not {size}.")
        self._size = size
        self._shuffle = shuffle
        self._seed = _shared_seed(seed)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            if self._shuffle:
                yield from torch.randperm(self._size, generator=generator).tolist()
            else:
                yield from range(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """Endless stream over a fixed random subset of the data set.

    Args:
        size: number of items of the data set.
        subset_ratio: share of the items to use, in (0, 1].
        shuffle: shuffle each pass.
        seed_shuffle: seed of the passes; None agrees on a random one.
        seed_subset: seed of the choice of the part; None agrees on a random one.
    """

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ) -> None:
        super().__init__(size=size, shuffle=shuffle, seed=seed_shuffle)
        assert 0.0 < subset_ratio <= 1.0, f"subset_ratio must be in (0, 1], got {subset_ratio}"
        self._size_subset = int(size * subset_ratio)
        assert self._size_subset > 0, f"subset_ratio {subset_ratio} of {size} items leaves none"
        generator = torch.Generator()
        generator.manual_seed(_shared_seed(seed_subset))
        self._indexes_subset = torch.randperm(size, generator=generator)[: self._size_subset]
        logger.info(
            "The training uses %d of the %d elements, drawn at random", self._size_subset, size
        )

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            indices = self._indexes_subset
            if self._shuffle:
                indices = indices[torch.randperm(self._size_subset, generator=generator)]
            yield from indices.tolist()


class RepeatFactorTrainingSampler(_EndlessSampler):
    """Endless passes that contain item ``i`` ``repeat_factors[i]`` times on average.

    The fractional part of a factor is rounded up or down at random, anew each pass.

    Args:
        repeat_factors: float vector, one factor per item.
        shuffle: shuffle each pass.
        seed: seed of rounding and shuffling, equal on all ranks; None agrees on a random one.

    Source: LVIS (arXiv:1908.03195), appendix B.2.
    """

    def __init__(
        self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None
    ) -> None:
        super().__init__()
        self._shuffle = shuffle
        self._seed = _shared_seed(seed)
        self._int_part = torch.trunc(repeat_factors)
        self._frac_part = repeat_factors - self._int_part

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict[str, Any]], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Compute factors that oversample images with rare categories.

        A category seen in the share ``f`` of the images gets ``max(1, sqrt(thresh / f))`` (without
        the root if ``sqrt`` is False); an image gets the largest factor of its categories, or 1.

        Args:
            dataset_dicts: records with ``annotations``.
            repeat_thresh: categories more frequent than this are not repeated.
            sqrt: take the square root.

        Returns:
            Float vector ``[number of records]``.
        """
        classes_per_image = [
            {annotation["category_id"] for annotation in record["annotations"]}
            for record in dataset_dicts
        ]
        frequency = Counter(itertools.chain.from_iterable(classes_per_image))

        def category_factor(count: int) -> float:
            ratio = repeat_thresh / (count / len(dataset_dicts))
            return max(1.0, math.sqrt(ratio) if sqrt else ratio)

        factors = {category: category_factor(count) for category, count in frequency.items()}
        return torch.tensor(
            [max((factors[c] for c in classes), default=1.0) for classes in classes_per_image],
            dtype=torch.float32,
        )

    def _pass_indices(self, generator: torch.Generator) -> torch.Tensor:
        rounds_up = torch.rand(len(self._frac_part), generator=generator) < self._frac_part
        repeats = (self._int_part + rounds_up.float()).long()
        return torch.repeat_interleave(torch.arange(len(repeats)), repeats)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            indices = self._pass_indices(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()


class InferenceSampler(Sampler):
    """Every index exactly once over all ranks, in order, in contiguous shards.

    Shard sizes differ by at most one and the first ranks take the larger ones, so that no sample is
    padded in or dropped.

    Args:
        size: number of items of the data set.
    """

    def __init__(self, size: int) -> None:
        assert size > 0, f"InferenceSampler needs a data set with at least one item, got {size}"
        self._size = size
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
        self._local_indices = self._get_local_indices(size, self._world_size, self._rank)

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        small, larger_ranks = divmod(total_size, world_size)
        begin = rank * small + min(rank, larger_ranks)
        return range(begin, begin + small + int(rank < larger_ranks))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
