"""Seeded damage to bytes, as disks, interrupted copies and hostile hands do it."""

import random

__all__ = ["damaged"]


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 32))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_bytes(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2, 4))):
        data[rng.randrange(len(data))] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))


def _zero_range(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((4, 64, 512, len(data))))
    data[start:end] = bytes(end - start)


def _remove_range(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 2, 8, 64))]


def _insert(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = rng.randbytes(rng.choice((1, 2, 8, 64)))


def _repeat_range(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    piece = bytes(data[start : start + rng.choice((1, 8, 64, 512))])
    target = rng.randrange(len(data) + 1)
    data[target:target] = piece


def _damage_head(data: bytearray, rng: random.Random) -> None:
    """Lengths and headers are at the start of most formats."""
    for _ in range(rng.choice((1, 2, 4))):
        data[rng.randrange(min(len(data), 64))] = rng.randrange(256)


_OPERATORS = (
    _truncate,
    _flip_bits,
    _set_bytes,
    _zero_range,
    _remove_range,
    _insert,
    _repeat_range,
    _damage_head,
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A copy of ``data`` with one to three faults."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if result:
            rng.choice(_OPERATORS)(result, rng)
    return bytes(result)
