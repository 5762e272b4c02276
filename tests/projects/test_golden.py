"""The detectors are upstream's networks: same keys, detections, memory and losses."""

import numpy as np
import pytest
import torch

from tests.golden import formula
from tests.golden.reference import (
    FAST,
    GOLDEN,
    SLOW,
    TIED_PROPOSALS,
    TOLERANCE,
    assert_same_detections,
    build,
    evaluate,
    expected,
    silence_dropout,
)
from tokendetr.compat.meta import meta_device

TIED_LOSS_TOLERANCE = 2e-2
SWIN_LARGE_LOSS_TOLERANCE = 5e-2
NAMES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    """Use the thread count of the golden numbers: near-ties depend on how sums are split."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    """Return one detector with formula weights, and upstream's numbers."""
    model = build(request.param)
    formula.fill(model)
    return model, expected(request.param), np.load(GOLDEN / f"{request.param}.npz")


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_state_dict_has_upstreams_keys_shapes_and_order(name):
    with meta_device():
        model = build(name)
    facts = expected(name)
    keys = [(key, list(tensor.shape)) for key, tensor in model.state_dict().items()]
    assert keys == [(key, shape) for key, shape in facts["state_dict"].items()]
    assert sum(parameter.numel() for parameter in model.parameters()) == facts["num_params"]


@pytest.mark.parametrize("sample", [0, 1])
def test_evaluation_gives_upstreams_detections(golden, sample):
    model, facts, numbers = golden
    (found,), memory = evaluate(model, [formula.records()[sample]])
    prefix = f"eval{sample}"
    head = numbers[f"{prefix}_memory_head"]
    ours = memory[0, ::37, ::29].numpy()
    np.testing.assert_allclose(ours, head, rtol=TOLERANCE, atol=TOLERANCE * np.abs(head).max())
    square_sum = float((memory.double() ** 2).sum())
    np.testing.assert_allclose(square_sum, numbers[f"{prefix}_memory_sum"][1], rtol=TOLERANCE)
    assert_same_detections(found, numbers, prefix, TIED_PROPOSALS.get(facts["config"], 0))


def test_training_gives_upstreams_losses(golden):
    model, facts, _ = golden
    model.train()
    silence_dropout(model)
    torch.manual_seed(0)  # of Swin's stochastic depth, which upstream left on
    with torch.no_grad():
        losses = model(formula.records())
    assert set(losses) == set(facts["losses"])
    wanted = {n: v for n, v in facts["losses"].items() if "_dn" not in n}  # those are random
    ours = {name: float(losses[name]) for name in wanted}
    tolerance, share = TOLERANCE, 0.9
    if facts["config"] in TIED_PROPOSALS:
        tolerance = TIED_LOSS_TOLERANCE
    if "swin_large" in facts["config"]:  # one layer's boxes, and a little of its neighbors'
        tolerance, share = SWIN_LARGE_LOSS_TOLERANCE, 0.7
    assert ours == pytest.approx(wanted, rel=tolerance, abs=1e-6)
    close = [n for n, v in wanted.items() if ours[n] == pytest.approx(v, rel=TOLERANCE, abs=1e-6)]
    assert len(close) >= share * len(wanted)
