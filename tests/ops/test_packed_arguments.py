"""Hostile arguments of packed attention: an error names each, from the kernels and the fallback."""

import contextlib

import pytest
import torch

from tokendetr.ops import packed_attention, use_reference

G, T, M, D, R = 2, 5, 3, 4, 2
TENSORS = {
    "query": (G, T, M, D),
    "key": (G, T, M, D),
    "value": (G, T, M, D),
    "segment": (G, T),
    "position": (G, T, 2),
    "bias_table": (M, 2 * R + 1, 2 * R + 1),
    "key_bias": (G, T),
}
PARAMETER = {"position": "position_GT2", "bias_table": "bias_table_MRR", "key_bias": "key_bias_GT"}


def good() -> dict:
    return {
        name: torch.zeros(shape, dtype=torch.int32)
        if name in ("segment", "position")
        else torch.rand(shape)
        for name, shape in TENSORS.items()
    }


def call(arguments: dict) -> torch.Tensor:
    optional = {parameter: arguments[name] for name, parameter in PARAMETER.items()}
    return packed_attention(
        *[arguments[name] for name in ("query", "key", "value", "segment")],
        scale=arguments.get("scale"),
        **optional,
    )


def bad_tensors(name: str) -> list:
    tensor, shape = good()[name], TENSORS[name]
    wrong = [tensor.sum(), tensor[0], tensor[None], tensor[..., None], tensor.to("meta")]
    for axis in range(len(shape)):
        if name == "query" or (name == "bias_table" and axis):
            continue  # of others' shape; squares are made below
        wrong += [tensor.narrow(axis, 0, shape[axis] - 1), torch.cat([tensor, tensor], axis)]
    if name == "bias_table":
        wrong += [torch.rand(M, 5, 3), torch.rand(M, 4, 4), torch.rand(M, 0, 0)]
    if name == "query":
        wrong += [torch.rand(G, T, 0, D), torch.rand(G, T, M, 0)]
    types = (torch.bool, torch.int64, torch.uint8, torch.complex64, torch.float64, torch.float16)
    if name in ("segment", "position"):
        types = (*types, torch.float32)
    else:
        types = (*types, torch.int32)
    wrong += [tensor.to(dtype) for dtype in types if name != "query" or not dtype.is_floating_point]
    wrong += [tensor.to_sparse(), [1.0], "x", 3]
    if name not in PARAMETER:
        wrong.append(None)
    return wrong


HOSTILE = [(name, value) for name in TENSORS for value in bad_tensors(name)] + [
    ("scale", value) for value in (float("nan"), float("inf"), "1", True, 1j, [1.0])
]


def test_there_are_a_hundred_hostile_argument_sets() -> None:
    assert len(HOSTILE) >= 100


@pytest.mark.parametrize("reference", [False, True])
def test_hostile_arguments_raise_errors_that_name_them(reference: bool) -> None:
    call(good())
    for name, value in HOSTILE:
        with (
            use_reference() if reference else contextlib.nullcontext(),
            pytest.raises((ValueError, TypeError)) as error,
        ):
            call(good() | {name: value})
        shown = (value.shape, value.dtype) if isinstance(value, torch.Tensor) else value
        assert name in str(error.value), (name, shown, str(error.value))


@pytest.mark.parametrize("reference", [False, True])
def test_position_and_table_come_together(reference: bool) -> None:
    for name in ("position", "bias_table"):
        with (
            use_reference() if reference else contextlib.nullcontext(),
            pytest.raises(ValueError, match="position and bias_table"),
        ):
            call(good() | {name: None})


def test_operator_checks_what_the_function_would() -> None:
    arguments = good()
    tensors = list(arguments.values())
    with pytest.raises(ValueError, match="scale"):
        torch.ops.tokendetr.packed_attention(*tensors[:4], float("nan"), *tensors[4:])
    backward = torch.ops.tokendetr.packed_attention_backward
    for grad in (torch.rand(G, T, M, D + 1), torch.rand(G, T, M, D).double()):
        with pytest.raises((ValueError, TypeError), match="grad_output"):
            backward(grad, *tensors[:4], 1.0, *tensors[4:], True, True)
    grad = torch.rand(G, T, M, D)
    with pytest.raises(ValueError, match="bias_table"):
        backward(grad, *tensors[:4], 1.0, None, None, None, True, False)
    with pytest.raises(ValueError, match="key_bias"):
        backward(grad, *tensors[:4], 1.0, None, None, None, False, True)


def test_table_too_large_for_its_index() -> None:
    arguments = good()
    arguments["bias_table"] = torch.zeros(1).expand(M, 2**15 + 1, 2**15 + 1)
    with pytest.raises(ValueError, match="bias_table"):
        call(arguments)
