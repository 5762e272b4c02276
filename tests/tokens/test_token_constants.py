"""Tensors that follow from sizes are made once, and never where they would do harm."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tokendetr.tokens.constants import MOST_BYTES, kept_tensors


def test_results_are_made_once_and_the_oldest_go_first():
    made: list[int] = []

    @kept_tensors
    def zeros(number: int, length: int) -> Tensor:
        made.append(number)
        return torch.zeros(length, dtype=torch.uint8)

    assert zeros(0, 4) is zeros(0, 4)
    part = MOST_BYTES // 8
    for number in range(1, 9):
        zeros(number, part)
    zeros(8, part)
    assert made == list(range(9))
    zeros(0, 4)
    assert made == [*range(9), 0], "it had to make room"
    zeros(9, part + 1)
    zeros(9, part + 1)
    assert made[-2:] == [9, 9], "too large to be kept"


def test_nothing_is_kept_of_a_trace_and_what_inference_made_can_have_gradients():
    @kept_tensors
    def ramp(length: int) -> Tensor:
        return torch.arange(length, dtype=torch.float32)

    with FakeTensorMode():
        assert type(ramp(3)) is not Tensor
    with torch.inference_mode():
        ramp(3)
    weight = torch.ones(3, requires_grad=True)
    (weight * ramp(3)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 1, 2]
