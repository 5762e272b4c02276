"""Random problems for the operators, and an oracle that visits every corner of every sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = ("value", "locations", "weights")


@dataclass(frozen=True)
class Case:
    shapes: tuple[tuple[int, int], ...]
    value: Tensor
    locations: Tensor
    weights: Tensor

    def to(self, dtype: torch.dtype) -> "Case":
        return Case(
            self.shapes, self.value.to(dtype), self.locations.to(dtype), self.weights.to(dtype)
        )

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.value, self.locations, self.weights


def pick(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def random_case(seed: int, *, width: int | None = None, dtype: torch.dtype = torch.float64) -> Case:
    """Draw batch 0-3, heads 1-8, 1-5 levels from 1x1, 1-16 points, 0-50 queries, in [-1, 2]."""
    g = torch.Generator().manual_seed(seed)
    batch, heads = pick(g, 0 if seed % 16 == 0 else 1, 3), pick(g, 1, 8)
    width = width or (71, 1, 1025, 32)[seed % 4] if seed % 25 == 0 else width or pick(g, 1, 72)
    levels, points = pick(g, 1, 5), pick(g, 1, 16 if seed % 10 == 0 else 8)
    queries = pick(g, 0, 50)
    shapes = tuple((pick(g, 1, 12), pick(g, 1, 12)) for _ in range(levels))
    tokens = sum(h * w for h, w in shapes)
    value = torch.randn(batch, tokens, heads, width, generator=g, dtype=dtype)
    locations = (
        torch.rand(batch, queries, heads, levels, points, 2, generator=g, dtype=dtype) * 3 - 1
    )
    weights = torch.randn(batch, queries, heads, levels, points, generator=g, dtype=dtype)
    return Case(shapes, value, locations, weights)


def oracle(case: Case) -> Tensor:
    """Apply the definition: four corners of a sample, zeros outside, 0 for non-finite locations."""
    batch, _, heads, width = case.value.shape
    queries = case.locations.shape[1]
    output = case.value.new_zeros(batch, queries, heads, width)
    start = 0
    image = torch.arange(batch)[:, None, None, None]
    head = torch.arange(heads)[None, None, :, None]
    for level, (height, columns) in enumerate(case.shapes):
        location = case.locations[:, :, :, level]
        finite = location.isfinite().all(-1)
        x = torch.where(finite, location[..., 0] * columns - 0.5, -9.0)
        y = torch.where(finite, location[..., 1] * height - 0.5, -9.0)
        for dy in (0, 1):
            for dx in (0, 1):
                column, row = x.floor() + dx, y.floor() + dy
                share = (1 - (x - column).abs()) * (1 - (y - row).abs())
                inside = (column >= 0) & (column < columns) & (row >= 0) & (row < height)
                token = torch.where(inside, row * columns + column, 0).long() + start
                corner = case.value[image, token, head] * inside[..., None]
                output += (corner * (share * case.weights[:, :, :, level])[..., None]).sum(3)
        start += height * columns
    return output.flatten(2)


def off_kinks(case: Case, distance: float = 1e-3) -> Case:
    """Move samples `distance` pixels away from pixel centers, where the derivative jumps."""
    locations = case.locations.clone()
    for level, (height, columns) in enumerate(case.shapes):
        size = locations.new_tensor([columns, height])
        pixel = locations[:, :, :, level] * size - 0.5
        fraction = (pixel - pixel.floor()).clamp(distance, 1 - distance)
        locations[:, :, :, level] = (pixel.floor() + fraction + 0.5) / size
    return Case(case.shapes, case.value, locations, case.weights)


def fused_case(seed: int, reference_width: int, *, dtype: torch.dtype = torch.float64) -> tuple:
    """Arguments of the fused form on the sizes of ``random_case(seed)``."""
    case = random_case(seed, dtype=dtype)
    g = torch.Generator().manual_seed(seed + 1)
    batch, queries, _, levels, _, _ = case.locations.shape
    reference = torch.rand(batch, queries, levels, reference_width, generator=g, dtype=dtype)
    offsets = torch.randn(case.locations.shape, generator=g, dtype=dtype) * 2
    return case.value, case.shapes, reference, offsets, case.weights * 3


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    return float(
        (actual.double() - expected.double()).abs().max() / expected.abs().max().clamp_min(1)
    )


def odd_locations(case: Case) -> Case:
    locations = case.locations.clone().view(-1, 2)
    odd = [float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 3e9, -3e9]
    for i in range(0, len(locations), 3):
        locations[i, i % 2] = odd[i // 3 % len(odd)]
    return Case(case.shapes, case.value, locations.view(case.locations.shape), case.weights)


def gradients(function, inputs, grad):
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves), leaves, grad)


def flat(shapes):
    return [size for pair in shapes for size in pair]


def usual_case(seed: int, dtype: torch.dtype = torch.float32) -> Case:
    """Draw 4 levels, 4 points, 32 channels; for odd seeds the queries are the tokens."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((9, 13), (5, 7), (3, 4), (2, 2))
    tokens = sum(h * w for h, w in shapes)
    queries = tokens if seed % 2 else 21
    value = torch.randn(2, tokens, 2, 32, generator=g, dtype=dtype)
    locations = torch.rand(2, queries, 2, 4, 4, 2, generator=g, dtype=dtype) * 1.6 - 0.3
    weights = torch.randn(2, queries, 2, 4, 4, generator=g, dtype=dtype)
    return Case(shapes, value, locations, weights)
