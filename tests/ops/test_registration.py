"""Registration of an operator: schema, autograd, compile, export, FLOPs; instruction sets."""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.cases import flat, fused_case, random_case
from tokendetr.ops import ms_deform_attn, ms_deform_attn_flops, ms_deform_attn_fused


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("seed", [1, 3, 16])
def test_opcheck_forward(seed: int, grad: bool) -> None:
    case = random_case(seed, dtype=torch.float32)
    tensors = [x.requires_grad_(grad) for x in case.tensors]
    torch.library.opcheck(
        torch.ops.tokendetr.ms_deform_attn, (tensors[0], flat(case.shapes), *tensors[1:])
    )
    value, shapes, *coordinates = fused_case(seed, 4, dtype=torch.float32)
    tensors = [x.requires_grad_(grad) for x in (value, *coordinates)]
    torch.library.opcheck(
        torch.ops.tokendetr.ms_deform_attn_fused, (tensors[0], flat(shapes), *tensors[1:])
    )


@pytest.mark.parametrize("seed", [1, 3, 16])
def test_opcheck_backward(seed: int) -> None:
    case = random_case(seed, dtype=torch.float32)
    grad = torch.randn(*case.locations.shape[:2], case.value.shape[2] * case.value.shape[3])
    torch.library.opcheck(
        torch.ops.tokendetr.ms_deform_attn_backward,
        (
            grad,
            case.value,
            flat(case.shapes),
            case.locations.transpose(1, 2).contiguous().transpose(1, 2),
            case.weights,
        ),
    )
    value, shapes, *coordinates = fused_case(seed, 2, dtype=torch.float32)
    for wanted in (False, True):
        torch.library.opcheck(
            torch.ops.tokendetr.ms_deform_attn_fused_backward,
            (grad, value, flat(shapes), *coordinates, wanted),
        )


class Attention(torch.nn.Module):
    def __init__(self, shapes) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, value, reference, offsets, logits):
        return ms_deform_attn_fused(value, self.shapes, reference, offsets, logits) * 2


def test_export_with_a_dynamic_number_of_queries() -> None:
    value, shapes, *coordinates = fused_case(1, 2, dtype=torch.float32)
    model = Attention(shapes)
    queries = torch.export.Dim("queries", min=1, max=4096)
    spec = {
        "value": None,
        "reference": {1: queries},
        "offsets": {1: queries},
        "logits": {1: queries},
    }
    program = torch.export.export(model, (value, *coordinates), dynamic_shapes=spec)
    for repeat in (1, 3):
        inputs = (value, *[x.repeat(1, repeat, *[1] * (x.dim() - 2)) for x in coordinates])
        torch.testing.assert_close(program.module()(*inputs), model(*inputs))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_without_graph_breaks(backend: str) -> None:
    value, shapes, *coordinates = fused_case(1, 2, dtype=torch.float32)
    model = Attention(shapes)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    leaves = [x.requires_grad_() for x in (value, *coordinates)]
    expected = torch.autograd.grad(model(*leaves).square().sum(), leaves)
    actual = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_flop_formulas() -> None:
    case = random_case(1, dtype=torch.float32)
    expected = ms_deform_attn_flops(case.locations.shape, case.value.shape[3])
    assert expected == 4 * case.weights.numel() * case.value.shape[3]
    tensors = [x.requires_grad_() for x in case.tensors]
    with FlopCounterMode(display=False) as counter:
        output = ms_deform_attn(tensors[0], case.shapes, *tensors[1:])
    assert counter.get_total_flops() == 2 * expected
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 4 * expected


SCRIPT = """
import sys, torch
from tests.ops.cases import flat, fused_case, random_case
from tokendetr.ops import ms_deform_attn, ms_deform_attn_fused
from tokendetr.ops import library_facts
results = []
for seed in range(1, 30):
    case = random_case(seed, width=(32, 16, 64, 7)[seed % 4], dtype=torch.float32)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        value = case.value.to(dtype).requires_grad_()
        output = ms_deform_attn(value, case.shapes, case.locations, case.weights)
        results += [output.detach(), *torch.autograd.grad(output.float().square().sum(), value)]
    value, shapes, *rest = fused_case(seed, 2 + 2 * (seed % 2), dtype=torch.float32)
    leaves = [x.requires_grad_() for x in (value, *rest)]
    output = ms_deform_attn_fused(leaves[0], shapes, *leaves[1:])
    results += [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]
torch.save((library_facts().instruction_set, results), sys.argv[1])
"""


def test_every_instruction_set_gives_the_same_values(tmp_path) -> None:
    found = {}
    for isa in ("avx512", "avx2", "portable"):
        path = tmp_path / isa
        environment = {**os.environ, "TOKENDETR_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", SCRIPT, str(path)], check=True, env=environment)
        chosen, results = torch.load(path)
        found[chosen] = results
    assert "portable" in found
    for isa, results in found.items():
        for a, b in zip(results, found["portable"], strict=True):
            tolerance = {torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}[a.dtype]
            if a.numel():
                assert float((a.float() - b.float()).abs().max()) <= tolerance * max(
                    1, float(b.abs().max())
                ), isa
