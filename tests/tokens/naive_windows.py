"""The windows of a level and their coherence, by plain loops."""

import torch


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    length = a.norm() * b.norm()
    return float(a @ b / length) if length > 0 else 0.0


def naive_coherence(rows_PC: torch.Tensor) -> float:
    pairs = [cosine(a, b) for a in rows_PC for b in rows_PC]
    return sum(pairs) / len(pairs)


def naive_edges(size: int, window: int) -> list[int]:
    """Where the parts of an axis begin and end: multiples of size / parts, rounded half up."""
    parts = max(1, size // window)
    return [int(i * size / parts + 0.5) for i in range(parts + 1)]


def naive_windows(height: int, width: int, window: int) -> list[list[int]]:
    rows, columns = naive_edges(height, window), naive_edges(width, window)
    return [
        [y * width + x for y in range(top, bottom) for x in range(left, right)]
        for top, bottom in zip(rows, rows[1:], strict=False)
        for left, right in zip(columns, columns[1:], strict=False)
    ]
