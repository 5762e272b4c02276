"""The alignment loss of Dynamic DETR: its value, its gradients, and the cases without it."""

import copy
import logging
from collections import Counter

import detectron2.utils.logger
import pytest
import torch
from torch import nn

from dynamic_detr import DynamicSparsifier
from tests.dynamic_detr.dynamic_encoders import OPTIONS, SIZES, dynamic_encoder
from tests.plain_encoder import CHANNELS, make_encoder
from tests.pyramids import make_batch
from tokendetr.encoder.forward_context import observe, record_tokens


class Detector(nn.Module):
    """Just enough of a detector to train an encoder in."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch):
        memory = self.encoder(**batch.inputs)
        return {"loss_own": memory.square().mean()} if self.training else [memory]


def test_two_pass_alignment_is_the_distance_to_the_dense_center():
    batch, alone = make_batch(SIZES, CHANNELS, dtype=torch.float64)
    model = observe(Detector(dynamic_encoder(alignment="two_pass", alignment_weight=0.3))).double()
    losses = model(batch)
    assert set(losses) == {"loss_own", "loss_align"}
    dense = make_encoder(num_layers=6).double()
    distances = []
    for single in alone:
        sparse = model.encoder(**single.inputs)[0].mean(dim=0)
        distances.append((sparse - dense(**single.inputs)[0].mean(dim=0)).norm())
    expected = 0.3 * torch.stack(distances).mean()
    torch.testing.assert_close(losses["loss_align"], expected, rtol=1e-6, atol=1e-9)
    losses["loss_align"].backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.layers.parameters()
    )
    model.eval()
    assert isinstance(model(batch), list)


def test_the_dense_pass_stores_no_gradient_and_is_not_traced():
    batch, _ = make_batch(SIZES, CHANNELS)
    model = observe(Detector(dynamic_encoder(alignment="two_pass")))
    with record_tokens() as trace:
        model(batch)
    assert len(trace.forwards) == 1 and len(trace.forwards[0].layers) == 6


def test_alignment_under_autocast_keeps_the_gradients():
    batch, _ = make_batch(SIZES, CHANNELS)
    model = observe(Detector(dynamic_encoder(alignment="two_pass")))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    losses["loss_own"].backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.layers.parameters()
    )


def test_alignment_per_merge_measures_each_level():
    batch, alone = make_batch(SIZES, CHANNELS, dtype=torch.float64)
    encoder = dynamic_encoder(alignment="per_merge", alignment_weight=1.0, merge="max").double()
    losses = observe(Detector(encoder))(batch)
    with record_tokens() as trace:
        encoder(**batch.inputs)
    token_map = trace.forwards[0].layers[0].token_map
    x, layout = batch.x_BNC, batch.layout
    level = torch.cat([torch.full((size,), n) for n, size in enumerate(layout.level_sizes)])
    total = 0.0
    for image in range(len(SIZES)):
        reduced = token_map.reduce(x)[image][token_map.valid_BK[image]]
        places = token_map.anchor_BK[image][token_map.valid_BK[image]]
        for n in range(4):
            before = x[image][layout.valid_BN[image] & (level == n)].mean(dim=0)
            total += (before - reduced[level[places] == n].mean(dim=0)).norm() / 4 / len(SIZES)
    assert losses["loss_align"] > 0
    losses["loss_align"].backward()
    first_stage_only = DynamicSparsifier(
        **{**OPTIONS, "alignment": "per_merge", "alignment_weight": 1.0, "merge": "max"},
        stage_lengths=(6,),
        level_orders=((1, 2, 3, 4),),
    )
    encoder = make_encoder(first_stage_only, num_layers=6).double()
    loss = observe(Detector(encoder))(batch)["loss_align"]
    torch.testing.assert_close(loss, total, rtol=1e-6, atol=1e-9)


def test_alignment_outside_of_a_detector_is_left_out_and_said_once(caplog, monkeypatch):
    monkeypatch.setattr(detectron2.utils.logger, "_LOG_COUNTER", Counter())
    batch, _ = make_batch(SIZES, CHANNELS)
    encoder = dynamic_encoder(alignment="two_pass")
    with caplog.at_level(logging.WARNING):
        encoder(**batch.inputs)
        encoder(**batch.inputs)
    assert sum("alignment loss" in record.message for record in caplog.records) == 1


def test_a_teacher_keeps_the_weights_of_the_dense_checkpoint():
    batch, _ = make_batch(SIZES, CHANNELS)
    dense = make_encoder(num_layers=6, seed=5)
    options = {"alignment": "teacher", "teacher": make_encoder(num_layers=6, seed=9)}
    model = observe(Detector(dynamic_encoder(alignment_weight=0.3, **options)))
    untaught = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="init_checkpoint"):
        untaught(batch)
    weights = {f"encoder.{key}": value for key, value in dense.state_dict().items()}
    model.load_state_dict(model.encoder.sparsifier.convert_weights(weights))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    assert len(optimizer.param_groups[0]["params"]) == len(list(dense.parameters()))
    for _ in range(2):
        losses = model(batch)
        with torch.no_grad():
            expected = (center(batch, model.encoder) - center(batch, dense)).norm(dim=-1).mean()
        torch.testing.assert_close(losses["loss_align"], 0.3 * expected, rtol=1e-5, atol=1e-7)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    teacher = model.encoder.sparsifier.teacher.encoder
    for own, kept in zip(dense.state_dict().values(), teacher.state_dict().values(), strict=True):
        assert torch.equal(own, kept)
    assert not torch.equal(model.encoder.layers[0].norms[0].weight, dense.layers[0].norms[0].weight)
    resumed = copy.deepcopy(untaught)
    state = model.encoder.sparsifier.convert_weights(model.state_dict())
    resumed.load_state_dict(state)
    assert torch.equal(resumed(batch)["loss_align"], model(batch)["loss_align"])


def center(batch, encoder):
    """Return the mean of each image's real tokens after an encoder, [B, C]."""
    memory = encoder(**batch.inputs)
    valid = batch.layout.valid_BN[..., None]
    return (memory * valid).sum(dim=1) / valid.sum(dim=1)
