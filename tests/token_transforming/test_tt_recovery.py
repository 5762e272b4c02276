"""Restoring tokens by what their reduced tokens changed."""

import pytest
import torch
from torch import nn

from tests.token_transforming.plain_vits import images, vision_transformer, vit
from tests.token_transforming.test_tt_swin import images as pictures
from tests.token_transforming.test_tt_swin import swin
from token_transforming import METHODS, Reduction, transform
from token_transforming.recovery import Undo
from tokendetr.tokens import ClusterAssignment, Mix

HOW = {"keep_ratio": 0.5, "threshold": 0.2, "temperature": 20.0, "recovery": "residual"}


def silence(block: nn.Module) -> None:
    """Let a block's branches add nothing."""
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
    with pytest.raises(ValueError, match="recovery must be one of paper, residual, got 'nearest'"):
        transform(vit(), layers=(1,), recovery="nearest")
