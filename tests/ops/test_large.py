"""Tensors with more than 2^31 elements, stored sparsely."""

import os

import pytest
import torch

from tokendetr.ops import ms_deform_attn

SIDE = 2074
SHAPES = ((SIDE, SIDE), (3, 5))
TOKENS = SIDE * SIDE + 15
HEADS, WIDTH = 8, 32
GIGABYTE = 2**30


def need_memory(gigabytes: int) -> None:
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        pass
    if available < gigabytes * GIGABYTE:
        pytest.skip(f"needs {gigabytes} GB of free memory, {available / GIGABYTE:.1f} GB are free")


def sparse_value(path: str) -> torch.Tensor:
    """Two images of zeros in a sparse file; numbers in the last level and a corner of the first."""
    value = torch.from_file(path, shared=True, size=2 * TOKENS * HEADS * WIDTH)
    value = value.view(2, TOKENS, HEADS, WIDTH)
    g = torch.Generator().manual_seed(0)
    value[:, -15:] = torch.randn(2, 15, HEADS, WIDTH, generator=g)
    value[:, SIDE * SIDE - 40 : SIDE * SIDE] = torch.randn(2, 40, HEADS, WIDTH, generator=g)
    return value


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    locations = torch.rand(2, 6, HEADS, 2, 4, 2, generator=g)
    locations[:, :, :, 0] = 1 - locations[:, :, :, 0] * (20 / SIDE)
    weights = torch.rand(2, 6, HEADS, 2, 4, generator=g)
    return locations, weights


def test_value_of_more_than_two_to_the_31_elements(tmp_path) -> None:
    value = sparse_value(str(tmp_path / "value"))
    assert value.numel() > 2**31
    locations, weights = samples()
    actual = ms_deform_attn(value, SHAPES, locations, weights)
    assert (actual != 0).any(dim=-1).all()
    for image in range(2):
        one = slice(image, image + 1)
        expected = ms_deform_attn(value[one], SHAPES, locations[one], weights[one])
        assert torch.equal(actual[one], expected)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two minutes of memory traffic on an idle machine
def test_gradient_of_more_than_two_to_the_31_elements(tmp_path) -> None:
    need_memory(15)
    value = sparse_value(str(tmp_path / "value"))
    locations, weights = samples()
    grad = torch.randn(2, 6, HEADS * WIDTH, generator=torch.Generator().manual_seed(2))
    flat = [size for pair in SHAPES for size in pair]
    backward = torch.ops.tokendetr.ms_deform_attn_backward
    actual = backward(grad, value, flat, locations, weights)
    for image in range(2):
        one = slice(image, image + 1)
        expected = backward(grad[one], value[one], flat, locations[one], weights[one])
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a[one], b)


@pytest.mark.slow
def test_output_of_more_than_two_to_the_31_elements() -> None:
    need_memory(12)
    heads, width, queries = 8, 256, 2**20 + 64
    g = torch.Generator().manual_seed(0)
    value = torch.randn(1, 4, heads, width, generator=g).bfloat16()
    locations = torch.rand(1, queries, heads, 1, 1, 2, generator=g)
    weights = torch.rand(1, queries, heads, 1, 1, generator=g)
    output = ms_deform_attn(value, ((2, 2),), locations, weights)
    assert output.numel() > 2**31
    few = ms_deform_attn(value, ((2, 2),), locations[:, -50:], weights[:, -50:])
    torch.testing.assert_close(output[:, -50:], few, rtol=1e-2, atol=1e-2)
    few = ms_deform_attn(value, ((2, 2),), locations[:, :50], weights[:, :50])
    torch.testing.assert_close(output[:, :50], few, rtol=1e-2, atol=1e-2)
