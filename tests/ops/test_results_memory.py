"""Large results reuse memory: what earlier results left in it never shows."""

import gc
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from tokendetr.ops import extension_available, ms_deform_attn_fused, packed_attention

pytestmark = pytest.mark.skipif(not extension_available(), reason="the kernels are not built")

SHAPES = ((64, 64), (16, 16))
TOKENS = sum(height * width for height, width in SHAPES)


def inputs(queries: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries)
    drawn = [
        torch.randn(1, TOKENS, 8, 32, generator=generator),
        torch.rand(1, queries, 2, 2, generator=generator),
        torch.randn(1, queries, 8, 2, 4, 2, generator=generator),
        torch.randn(1, queries, 8, 2, 4, generator=generator),
    ]
    return [each.requires_grad_() for each in drawn]


def deform(value: Tensor, *coordinates: Tensor) -> list[Tensor]:
    output = ms_deform_attn_fused(value, SHAPES, *coordinates)
    return [output, *torch.autograd.grad(output.square().sum(), (value, *coordinates))]


def attend(queries: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries)
    drawn = [torch.randn(60, 49, 8, 32, generator=generator) for _ in range(3)]
    segment = torch.zeros(60, 49, dtype=torch.int32)
    segment[:, 40:] = -1
    leaves = [each.requires_grad_() for each in drawn]
    output = packed_attention(*leaves, segment)
    return [output, *torch.autograd.grad(output.square().sum(), leaves)]


@pytest.mark.parametrize("queries", [40, 1000, TOKENS])
def test_what_a_result_leaves_behind_does_not_reach_the_next_one(queries):
    def all_results() -> list[Tensor]:
        return [*deform(*inputs(queries)), *attend(queries)]

    first = [each.clone() for each in all_results()]
    for _ in range(2):
        left = all_results()
        for each, expected in zip(left, first, strict=True):
            assert torch.equal(each, expected)
            each.detach().fill_(float("nan"))
        del each, left
        gc.collect()


def test_a_result_is_a_tensor_like_any_other():
    value, *coordinates = inputs(TOKENS)
    kept = [deform(value, *coordinates)[0].detach() for _ in range(3)]
    assert len({each.data_ptr() for each in kept}) == 3, "results in use share nothing"
    expected = kept[0].clone()
    assert torch.equal(kept[1].mul_(2), 2 * expected)
    assert torch.equal(kept[2].transpose(0, 1).contiguous(), expected.transpose(0, 1))
    assert torch.equal(torch.from_numpy(kept[0].numpy()), expected)
    with torch.inference_mode():
        assert torch.equal(ms_deform_attn_fused(value, SHAPES, *coordinates), expected)


def test_threads_share_the_memory():
    value, *coordinates = inputs(2000)
    expected = deform(value, *coordinates)[1]
    wrong = []

    def run() -> None:
        for _ in range(5):
            if not torch.equal(deform(value, *coordinates)[1], expected):
                wrong.append(True)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("keep", ["0", "words"])
def test_any_bound_of_what_is_kept_gives_the_same_results(keep):
    script = (
        "import tests.ops.test_results_memory as t; "
        "x = t.inputs(40); "
        "print([float(y.detach().double().sum()) for _ in range(2) for y in t.deform(*x)])"
    )
    environment = {**os.environ, "TOKENDETR_KEEP_MB": keep}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert ("TOKENDETR_KEEP_MB" in done.stderr) == (not keep.isdecimal())
    printed = [float(number) for number in done.stdout.strip("[]\n ").split(",")]
    expected = [float(each.detach().double().sum()) for each in deform(*inputs(40))]
    # The sums, not the results, depend on the number of threads.
    assert printed == pytest.approx([*expected, *expected], rel=1e-12)
