"""Freed memory stays with the process, unless its environment says otherwise."""

import platform
import resource

import pytest
import torch
from torch import nn

from tokendetr.layers.cpu import memory, optimize

BLOCK = 24 << 20


@pytest.fixture(autouse=True)
def _first_call(monkeypatch):
    for name in (*memory._GLIBC_VARIABLES, "TOKENDETR_KEEP_MB"):
        monkeypatch.delenv(name, raising=False)
    memory.keep_freed_memory.cache_clear()
    yield
    memory.keep_freed_memory.cache_clear()


def use_three_blocks() -> int:
    """Write to three large tensors and free them; return how many pages the system gave."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(BLOCK // 4) for _ in range(3)]
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_an_optimized_model_finds_its_memory_again():
    optimize(nn.Linear(2, 2))
    assert memory.keep_freed_memory()
    for _ in range(3):
        use_three_blocks()
    pages = 3 * BLOCK // resource.getpagesize()
    assert min(use_three_blocks() for _ in range(5)) < pages / 10


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, [(-1, 128 << 20), (-3, 32 << 20)]),
        ({"TOKENDETR_KEEP_MB": "3"}, [(-1, 3 << 20), (-3, 32 << 20)]),
        ({"TOKENDETR_KEEP_MB": "99999999"}, [(-1, (1 << 31) - 1), (-3, 32 << 20)]),
        ({"TOKENDETR_KEEP_MB": "many"}, [(-1, 128 << 20), (-3, 32 << 20)]),
        ({"TOKENDETR_KEEP_MB": "0"}, []),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"}, []),
        ({"MALLOC_TRIM_THRESHOLD_": "1"}, []),
    ],
)
def test_the_environment_says_how_much_is_kept(environment, expected, monkeypatch):
    calls = []

    def mallopt(parameter: int, value: int) -> int:
        calls.append((parameter, value))
        return 1

    monkeypatch.setattr(memory, "_mallopt", lambda: mallopt)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert memory.keep_freed_memory() == bool(expected)
    assert memory.keep_freed_memory() == bool(expected)
    assert calls == expected


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "_mallopt", lambda: None)
    assert not memory.keep_freed_memory()
