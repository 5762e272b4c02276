"""The windows of a level, their coherence and the order of their tokens, by plain loops."""

import torch


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    length = a.norm() * b.norm()
    return float(a @ b / length) if length > 0 else 0.0


def naive_coherence(rows_PC: torch.Tensor) -> float:
    pairs = [cosine(a, b) for a in rows_PC for b in rows_PC]
    return min(sum(pairs) / len(pairs), 1 - 1e-6)  # equal tokens, whatever the rounding


def naive_edges(size: int, window: int) -> list[int]:
    """Return where the parts of an axis begin: multiples of size / parts, rounded half up."""
    parts = max(1, size // window)
    return [int(i * size / parts + 0.5) for i in range(parts + 1)]


def naive_windows(height: int, width: int, window: int) -> list[list[int]]:
    rows, columns = naive_edges(height, window), naive_edges(width, window)
    return [
        [y * width + x for y in range(top, bottom) for x in range(left, right)]
        for top, bottom in zip(rows, rows[1:], strict=False)
        for left, right in zip(columns, columns[1:], strict=False)
    ]


def shifted_window_order(grid, size, window, shift):
    """Walk over the windows of the shifted, padded image and list the real tokens."""
    height, width = (-(-side // window) * window for side in size)
    order = []
    for top in range(0, height, window):
        for left in range(0, width, window):
            for y in range(top, top + window):
                for x in range(left, left + window):
                    row, column = (y + shift) % height, (x + shift) % width
                    if row < size[0] and column < size[1]:
                        order.append(row * grid[1] + column)
    return order
