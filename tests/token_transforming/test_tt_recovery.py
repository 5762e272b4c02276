"""Restoring tokens by the change of their reduced tokens."""

import pytest
import torch
from torch import nn

from tests.token_transforming.plain_vits import SIZE, images, vision_transformer, vit
from tests.token_transforming.small_swins import images as pictures
from tests.token_transforming.small_swins import swin
from token_transforming import (
    METHODS,
    NoMapsError,
    Reduction,
    fit_recovery,
    restore,
    transform,
)
from token_transforming.recovery import Undo
from tokendetr.sparsification.least_squares import RIDGES
from tokendetr.tokens import ClusterAssignment, Mix

HOW = {"keep_ratio": 0.5, "threshold": 0.2, "temperature": 20.0, "recovery": "residual"}


def silence(block: nn.Module) -> None:
    """Make a block's branches add nothing."""
    for branch in (block.attn.proj, block.mlp.fc2):
        branch.weight.data.zero_()
        branch.bias.data.zero_()


def token_map(x_BNC, recovery_index):
    """Tokens 0 and 2 are kept."""
    cluster = torch.tensor([[0, 0, 1, 1]])
    mixed = Mix(assignment=ClusterAssignment(cluster, 2), index_BK=torch.tensor([[0, 2]]))
    mixed = mixed.with_recovery(x_BNC, mixed.reduce(x_BNC))
    assert mixed.recovery.index_BNT[..., 0].tolist() == [recovery_index]
    return mixed


def test_a_token_keeps_its_content_and_gets_the_change():
    x_BNC = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [10.0, 4.0], [12.0, 4.0]]])
    mixed = token_map(x_BNC, [0, 0, 1, 1])
    y_BKC = mixed.reduce(x_BNC)
    assert y_BKC.tolist() == [[[1.0, 0.0], [11.0, 4.0]]]
    changed = y_BKC + torch.tensor([[[5.0, 1.0], [-1.0, 2.0]]])
    paper = Undo.of(mixed, x_BNC, y_BKC, Reduction())
    assert paper.restore(changed).tolist() == [[[6.0, 1.0], [6.0, 1.0], [10.0, 6.0], [10.0, 6.0]]]
    residual = Undo.of(mixed, x_BNC, y_BKC, Reduction(recovery="residual"))
    assert residual.restore(changed).tolist() == [[[5.0, 1.0], [7.0, 1.0], [9.0, 6.0], [11.0, 6.0]]]


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["sequence", "map", "windows", "cut windows"])
def test_what_later_blocks_leave_alone_comes_back_exactly(kind, method):
    if kind == "sequence":
        model, x, layers, options = vision_transformer(), images(), (1, 2), {"recover": "end"}
        blocks = model.blocks[1:]
    elif kind == "map":
        model, x, layers, options = vit(), images(), (1, 2), {}
        blocks = model.blocks[1:]
    else:
        model, layers, options = swin(), (4, 6), {}
        x = pictures((128, 128) if kind == "windows" else (100, 140))
        blocks = model.layers[2].blocks
    for block in blocks:
        silence(block)
    layers = layers[:1] if method == "clustering" else layers
    run = (lambda: model(x)) if kind == "sequence" else (lambda: list(model(x).values())[-1])
    dense = run()
    transform(model, layers=layers, method=method, **HOW, **options)
    torch.testing.assert_close(run(), dense, rtol=1e-4, atol=1e-4)
    transform(model, layers=layers, method=method, **{**HOW, "recovery": "paper"}, **options)
    assert not torch.allclose(run(), dense, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_both_recoveries_agree_about_tokens_that_stand_for_themselves():
    results = {}
    for recovery in ("paper", "residual"):
        model, x = vit(), images()
        transform(model, layers=(1,), method="pruning", **{**HOW, "recovery": recovery})
        results[recovery] = model(x)["last_feat"].flatten(2)
    same = (results["paper"] - results["residual"]).abs().amax(dim=1) < 1e-4
    kept = 32
    assert (same.sum(dim=1) >= kept).all()


def test_gradients_reach_what_is_added_back():
    model, x = vit(), images().requires_grad_()
    transform(model, layers=(1,), **HOW)
    model(x)["last_feat"].square().sum().backward()
    assert (x.grad.abs().sum(dim=(0, 1)) > 0).all()


def test_an_unknown_recovery_is_refused():
    with pytest.raises(
        ValueError, match="recovery must be one of 'paper', 'residual', 'affine', got 'nearest'"
    ):
        transform(vit(), layers=(1,), recovery="nearest")


def affine(kind: str):
    """Return a transformed model with maps, batches to fit and to evaluate, and a way to run it."""
    if kind == "windows":
        model, layers, options = swin(), (4, 6), {}
        batches = [torch.randn(2, 3, 100, 140, generator=seeded(seed)) for seed in range(8)]
    else:
        model = vision_transformer() if kind == "sequence" else vit()
        layers, options = (1, 2), {"recover": "end"} if kind == "sequence" else {}
        batches = [torch.randn(4, 3, SIZE, SIZE, generator=seeded(seed)) for seed in range(8)]
    with torch.no_grad():
        dense = [maps(model(batch)) for batch in batches]
    transform(model, layers=layers, **{**HOW, "recovery": "affine"}, **options)
    return model, batches, dense


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(output):
    return output if isinstance(output, torch.Tensor) else list(output.values())[-2 % len(output)]


def errors(model, batches, dense) -> float:
    with torch.no_grad():
        found = [maps(model(batch)) for batch in batches]
    return sum(float((a - b).square().sum()) for a, b in zip(found, dense, strict=True))


@pytest.mark.parametrize("kind", ["sequence", "map", "windows"])
def test_fitted_maps_restore_tokens_better_and_are_saved(kind):
    model, batches, dense = affine(kind)
    residual = errors(model, batches[6:], dense[6:])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    left = fit_recovery(model, batches[:4], batches[4:6])
    assert len(left) == 2 and max(left) < 1
    assert errors(model, batches[6:], dense[6:]) < 0.9 * residual
    changed = {k for k, value in model.state_dict().items() if not torch.equal(value, before[k])}
    assert changed and all("token_recovery" in key for key in changed)
    again, *_ = affine(kind)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(maps(again(batches[0])), maps(model(batches[0])))
    restore(again)
    assert not [key for key in again.state_dict() if "token_recovery" in key]


def test_maps_are_the_ridge_regression_of_what_is_missing():
    model, batches, _ = affine("map")
    transform(model, layers=(1,), **{**HOW, "recovery": "affine"})
    place = model.blocks[1].token_recovery
    seen = []
    hook = place.register_forward_pre_hook(lambda module, args: seen.append(args))
    with torch.no_grad():
        model(batches[0])
    hook.remove()
    before, change, kept, count = seen[0]
    assert kept.sum(dim=1).tolist() == [count] * 4
    fit_recovery(model, batches[:1], batches[:1])  # the smallest penalty suits best
    restore(model)
    with torch.no_grad():
        target = maps_before_the_neck(model, batches[0])
    for kind, rows in enumerate((kept, ~kept)):
        x = torch.cat([before, change], dim=-1)[rows].double()
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        strength = (RIDGES[0] * x[:, :-1].square().sum(dim=0).mean()).sqrt()
        penalty = strength * torch.eye(x.shape[1], dtype=torch.float64)
        penalty[-1, -1] = 0
        missing = (target - before - change)[rows].double()
        wanted = torch.cat([missing, missing.new_zeros(len(penalty), missing.shape[1])])
        expected = torch.linalg.lstsq(torch.cat([x, penalty]), wanted).solution
        found = torch.cat([place.weight[kind].T, place.bias[kind][None]])
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def maps_before_the_neck(model, batch):
    seen = []
    hook = model.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(out))
    model(batch)
    hook.remove()
    return seen[0].flatten(1, 2)


def test_views_of_blocks_in_between_are_restored_without_maps():
    found = {}
    for recovery in ("residual", "affine"):
        model = vision_transformer()
        transform(model, layers=(1,), recover="every", **{**HOW, "recovery": recovery})
        seen = found[recovery] = []
        for block in model.blocks:
            block.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        if recovery == "affine":
            model.blocks[1].token_recovery.bias.data.fill_(1.0)
        with torch.no_grad():
            model(images())
    torch.testing.assert_close(found["residual"][:-1], found["affine"][:-1])
    torch.testing.assert_close(found["residual"][-1] + 1, found["affine"][-1])


def test_without_maps_there_is_nothing_to_fit():
    model = vit()
    transform(model, layers=(1,), recovery="residual")
    with pytest.raises(NoMapsError, match="recovery='affine'"):
        fit_recovery(model, [images()], [images()])
    with pytest.raises(ValueError, match="held back"):
        fit_recovery(model, [images()], [])
