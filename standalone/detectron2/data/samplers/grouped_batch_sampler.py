"""Batches whose members share a group."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from torch.utils.data.sampler import BatchSampler, Sampler

__all__ = ["GroupedBatchSampler"]


class GroupedBatchSampler(BatchSampler):
    """Wraps a sampler and yields batches of indices that all belong to one group.

    The sampler's order is kept as far as grouping allows; groups that never fill are not yielded.

    Args:
        sampler: the stream of indices.
        group_ids: the group of each index.
        batch_size: indices per batch.
    """

    def __init__(self, sampler: Sampler, group_ids: Sequence[int], batch_size: int) -> None:
        if not isinstance(sampler, Sampler):
            raise ValueError(f"sampler should be a torch.utils.data.Sampler, got {sampler!r}")
        self.sampler = sampler
        self.group_ids = list(group_ids)
        self.batch_size = batch_size
        self._buckets: dict[int, list[int]] = defaultdict(list)

    def __iter__(self) -> Iterator[list[int]]:
        for idx in self.sampler:
            bucket = self._buckets[self.group_ids[idx]]
            bucket.append(idx)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                del bucket[:]
                yield batch

    def __len__(self) -> int:
        raise NotImplementedError("the number of grouped batches is not known in advance")
