"""Streams of several ranks in one process."""

import itertools

from detectron2.utils import comm


def as_rank(monkeypatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)


def take(iterable, n: int) -> list:
    return list(itertools.islice(iterable, n))
