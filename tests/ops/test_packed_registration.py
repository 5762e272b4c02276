"""Registration of packed attention: schema, autograd, compile, export, FLOPs; instruction sets."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.packed_cases import PackedCase, arguments, random_packed
from tokendetr.analysis.flops import count_flops
from tokendetr.ops import packed_attention_flops


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3, 6, 16])
def test_opcheck_forward(seed: int, grad: bool) -> None:
    case = random_packed(seed, dtype=torch.float32)
    case = case.with_leaves([x.requires_grad_(grad) for x in case.leaves])
    torch.library.opcheck(torch.ops.tokendetr.packed_attention, arguments(case))


@pytest.mark.parametrize("seed", [1, 3, 16])
def test_opcheck_backward(seed: int) -> None:
    case = random_packed(seed, dtype=torch.float32)
    grad = torch.randn(case.query.shape[::-1]).permute(3, 2, 1, 0)
    wanted = (case.table is not None, case.key_bias is not None)
    for wants in {wanted, (False, False)}:
        torch.library.opcheck(
            torch.ops.tokendetr.packed_attention_backward, (grad, *arguments(case), *wants)
        )


class Attention(torch.nn.Module):
    """One projection to queries, keys and values, with both biases."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.projection = torch.nn.Parameter(torch.randn(16, 48, generator=g))
        self.table = torch.nn.Parameter(torch.randn(2, 5, 5, generator=g))

    def forward(self, tokens_GTC, segment, position, key_bias):
        projected = (tokens_GTC @ self.projection).unflatten(-1, (3, 2, 8))
        case = PackedCase(*projected.unbind(2), segment, None, position, self.table, key_bias)
        return case.run() * 2


def attention_inputs(containers: int, slots: int = 9) -> tuple:
    g = torch.Generator().manual_seed(containers)
    segment = torch.randint(-1, 3, (containers, slots), generator=g, dtype=torch.int32)
    position = torch.randint(0, 5, (containers, slots, 2), generator=g, dtype=torch.int32)
    tokens = torch.randn(containers, slots, 16, generator=g)
    return tokens, segment, position, torch.rand(containers, slots, generator=g)


def test_export_with_a_dynamic_number_of_containers() -> None:
    model = Attention()
    containers = torch.export.Dim("containers", min=1, max=4096)
    program = torch.export.export(model, attention_inputs(3), dynamic_shapes=({0: containers},) * 4)
    for count in (1, 3, 10):
        inputs = attention_inputs(count)
        torch.testing.assert_close(program.module()(*inputs), model(*inputs))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_without_graph_breaks(backend: str) -> None:
    model = Attention()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    tokens, *rest = attention_inputs(4)
    leaves = [tokens.requires_grad_(), *model.parameters()]
    expected = torch.autograd.grad(model(tokens, *rest).square().sum(), leaves)
    actual = torch.autograd.grad(compiled(tokens, *rest).square().sum(), leaves)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_meta_tensors() -> None:
    case = random_packed(1)
    moved = replace(
        case.with_leaves([x.to("meta") for x in case.leaves]),
        segment=case.segment.to("meta"),
        position=case.position.to("meta"),
    )
    assert moved.run().shape == case.query.shape


def test_flops_count_pairs_of_the_same_segment() -> None:
    segment = torch.tensor([[0, 0, 5, -1, 5, 5], [-1] * 6, [7, 8, 9, 1, 2, 7], [0] * 6])
    pairs = (4 + 9) + 0 + (4 + 4) + 36
    assert packed_attention_flops(segment, 10) == 2 * 10 * pairs
    assert packed_attention_flops(segment[:0], 10) == 0
    assert packed_attention_flops(segment.to("meta"), 10) == 2 * 10 * 4 * 36
    tensors = [torch.randn(4, 6, 2, 5, requires_grad=True) for _ in range(3)]
    case = PackedCase(*tensors, segment.to(torch.int32))
    with FlopCounterMode(display=False) as counter:
        output = case.run()
    assert counter.get_total_flops() == 2 * 2 * 10 * pairs
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 5 * 2 * 10 * pairs


class Counted(torch.nn.Module):
    def __init__(self, case: PackedCase) -> None:
        super().__init__()
        self.case = case

    def forward(self, inputs):
        return replace(self.case, query=inputs[0]["query"]).run()


def test_flop_report_counts_it() -> None:
    case = random_packed(1, dtype=torch.float32)
    expected = packed_attention_flops(case.segment, case.query.shape[2] * case.query.shape[3])
    report = count_flops(Counted(case), [{"query": case.query}])
    assert report.total == expected


SCRIPT = """
import sys, torch
from tests.ops.packed_cases import incoming, packed_gradients, random_packed
from tokendetr.ops import library_facts
results = []
for seed in range(1, 16):
    case = random_packed(seed, width=(32, 16, 64, 7)[seed % 4], dtype=torch.float32)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        low = case.to(dtype, biases=dtype == torch.float64)
        results += [low.run(), *packed_gradients(low, incoming(low))]
torch.save((library_facts().instruction_set, results), sys.argv[1])
"""


def test_every_instruction_set_gives_the_same_values(tmp_path) -> None:
    found = {}
    for isa in ("amx", "avx512_bf16", "avx512", "avx2", "portable"):
        path = tmp_path / isa
        environment = {**os.environ, "TOKENDETR_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", SCRIPT, str(path)], check=True, env=environment)
        chosen, results = torch.load(path)
        found[chosen] = results
    assert "portable" in found
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
    for isa, results in found.items():
        for a, b in zip(results, found["portable"], strict=True):
            difference = (a.double() - b.double()).abs().max()
            assert float(difference) <= bound[a.dtype] * max(1, float(b.abs().max())), isa
