"""A transformed Swin computes the same when it is optimized for evaluation on CPUs."""

import pytest
import torch

from tests.token_transforming.small_swins import images, swin
from token_transforming import METHODS, transform, windowed
from tokendetr.layers.cpu import optimize
from tokendetr.ops import extension_available

pytestmark = pytest.mark.skipif(
    not extension_available(), reason="the fast form needs the compiled kernels"
)


@torch.no_grad()
@pytest.mark.parametrize("size", [(128, 128), (100, 140)])
@pytest.mark.parametrize(
    "options",
    [
        *({"method": method} for method in METHODS),
        {"window_bias": "positions", "layers": (2, 6)},
        {"selection": "uniform", "recovery": "residual", "layers": (2, 6)},
    ],
    ids=str,
)
def test_optimized_blocks_give_the_same_maps(size, options, monkeypatch):
    model, x = swin(), images(size)
    transform(model, **{"layers": (6,), "keep_ratio": 9 / 16, **options})
    plain, fast_runs = model(x), []

    def evaluate(blocks, *arguments):
        fast_runs.append(len(blocks))
        return evaluate_blocks(blocks, *arguments)

    evaluate_blocks = windowed.evaluate_blocks
    monkeypatch.setattr(windowed, "evaluate_blocks", evaluate)
    with optimize(model):
        optimized = model(x)
    reduced = len(options.get("layers", (6,)))
    stages = [range(2), range(2, 4), range(4, 10), range(10, 12)]
    with_reductions = [s for s in stages if set(s) & set(options.get("layers", (6,)))]
    assert sum(fast_runs) == sum(map(len, with_reductions)) - reduced
    for name, expected in plain.items():
        torch.testing.assert_close(optimized[name], expected, rtol=1e-4, atol=1e-4)


def test_training_and_hooks_take_the_plain_blocks(monkeypatch):
    model, x = swin(), images((128, 128))
    transform(model, layers=(6,), keep_ratio=9 / 16)
    monkeypatch.setattr(windowed, "evaluate_blocks", lambda *a: pytest.fail("the fast form ran"))
    with optimize(model):
        model(x)["p2"].sum().backward()
        for block in model.layers[2].blocks:
            block.attn.proj_drop.register_forward_hook(lambda module, inputs, output: output)
        with torch.no_grad():
            model(x)
