"""Hostile arguments: a Python error names each, from the kernels and from the fallback."""

import contextlib
import itertools

import pytest
import torch

from tokendetr.ops import ms_deform_attn, ms_deform_attn_fused, use_reference

SHAPES = ((4, 5), (2, 3))
B, N, M, D, Q, L, P = 2, 26, 2, 8, 3, 2, 4
SIZES = {
    "value": (B, N, M, D),
    "sampling_locations": (B, Q, M, L, P, 2),
    "attention_weights": (B, Q, M, L, P),
    "reference_points": (B, Q, L, 2),
    "sampling_offsets": (B, Q, M, L, P, 2),
    "attention_logits": (B, Q, M, L, P),
}
PLAIN = ("value", "level_shapes", "sampling_locations", "attention_weights")
FUSED = ("value", "level_shapes", "reference_points", "sampling_offsets", "attention_logits")


def good(names: tuple[str, ...]) -> dict:
    return {name: SHAPES if name == "level_shapes" else torch.rand(SIZES[name]) for name in names}


BAD_LEVELS = [
    ("level_shapes", shapes)
    for shapes in (
        (),
        ((4, 5),),
        ((2, 3), (4, 5), (1, 1)),
        ((-4, -5), (2, 3)),
        ((4, 5), (0, 3)),
        ((26, 0), (2, 3)),
        ((2**31, 2**31), (2, 3)),
        ((2**62, 4), (2, 3)),
        ((2**63 - 1, 2**63 - 1), (2, 3)),
        ((4.0, 5.0), (2, 3)),
        ((4, 5), (2,)),
        ((4, 5), (2, 3, 1)),
        ((True, 20), (2, 3)),
        ((None, 5), (2, 3)),
        ((2**70, 1), (2, 3)),
        None,
        26,
        ("ab", "cd"),
        ((1, 1),) * 26,
        torch.tensor([4, 5]),
        torch.tensor([[4.0, 5.0], [2.0, 3.0]]),
        torch.tensor([[[4, 5], [2, 3]]]),
        torch.tensor(4),
        torch.tensor([[True, True], [True, True]]),
        torch.tensor([[20, 1], [-2, -3]], dtype=torch.int32),
        torch.zeros(0, 2, dtype=torch.long),
        torch.tensor([[4, 5, 1], [2, 3, 1]]),
        torch.tensor([[2**40, 2**40], [2, 3]]),
    )
]


def bad_tensors(name: str) -> list:
    size = SIZES[name]
    tensor = torch.rand(size)
    wrong = [
        torch.rand(()),
        torch.rand(size[1:]),
        tensor[None],
        torch.rand(*size, 1),
        torch.rand(size).sum(),
    ]
    for axis in range(len(size)):
        if name == "reference_points" and axis == 3:
            wrong += [torch.rand(*size[:3], width) for width in (0, 1, 3, 5)]
            continue
        if (name, axis) in (("value", 3), ("sampling_locations", 1), ("sampling_offsets", 1)):
            continue  # the size itself, which others follow
        bigger = list(size)
        bigger[axis] += 1
        wrong += [torch.rand(bigger), tensor.narrow(axis, 0, size[axis] - 1)]
    wrong += [tensor.to(dtype) for dtype in (torch.int32, torch.int64, torch.bool, torch.complex64)]
    wrong += [
        tensor.half() if name != "value" else torch.rand(size).to(torch.float8_e4m3fn),
        tensor.to("meta"),
        tensor.to_sparse(),
    ]
    if name != "value":
        wrong.append(tensor.double())
    return [(name, x) for x in wrong]


HOSTILE = [
    (names, name, value)
    for names in (PLAIN, FUSED)
    for name, value in itertools.chain(
        BAD_LEVELS, *[bad_tensors(name) for name in names if name != "level_shapes"]
    )
]


def test_there_are_two_hundred_hostile_argument_sets() -> None:
    assert len(HOSTILE) >= 200


@pytest.mark.parametrize("reference", [False, True])
def test_hostile_arguments_raise_errors_that_name_them(reference: bool) -> None:
    for names, name, value in HOSTILE:
        arguments = good(names) | {name: value}
        function = ms_deform_attn if names is PLAIN else ms_deform_attn_fused
        with (
            use_reference() if reference else contextlib.nullcontext(),
            pytest.raises((ValueError, TypeError)) as error,
        ):
            function(*arguments.values())
        shown = (
            value
            if not isinstance(value, torch.Tensor)
            else (value.shape, value.dtype, value.device)
        )
        assert name in str(error.value), (shown, str(error.value))


@pytest.mark.parametrize("reference", [False, True])
def test_no_tensor_at_all(reference: bool) -> None:
    for function, names in ((ms_deform_attn, PLAIN), (ms_deform_attn_fused, FUSED)):
        for name in names:
            with (
                use_reference() if reference else contextlib.nullcontext(),
                pytest.raises((TypeError, ValueError), match=name),
            ):
                function(*(good(names) | {name: None}).values())


def test_backward_checks_the_incoming_gradient() -> None:
    flat = [size for pair in SHAPES for size in pair]
    arguments = good(PLAIN) | {"level_shapes": flat}
    for grad in (
        torch.rand(B, Q, M * D - 1),
        torch.rand(B, Q, M * D).double(),
        torch.rand(B, Q + 1, M * D),
    ):
        with pytest.raises((ValueError, TypeError), match="grad_output"):
            torch.ops.tokendetr.ms_deform_attn_backward(grad, *arguments.values())
