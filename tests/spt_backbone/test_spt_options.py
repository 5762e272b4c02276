"""SPT's options for the inputs, targets and thresholds of its gates, calibration, and export."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spt_backbone import SPT
from spt_backbone.block import Selection
from spt_backbone.calibration import calibrate_threshold, find_spt, selected_ratios
from spt_backbone.losses import THRESHOLDS, selection_loss
from spt_backbone.selection import pack_selected
from spt_backbone.static_pack import StaticPack
from tests.spt_backbone.spt_models import Detector, half_selecting, maps_of, records, small_spt
from tokendetr.encoder.forward_context import observe
from tokendetr.layers.cpu import optimize
from tokendetr.tokens import LevelLayout


def detector(training=False, **options) -> nn.Module:
    return observe(Detector(small_spt(**options))).train(training)


def test_the_first_gate_may_read_normalized_features():
    plain, normed = half_selecting(1), half_selecting(1, first_gate_norm=True)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = {}
    for name, model in (("plain", plain), ("normed", normed)):
        model.gate.register_forward_hook(
            lambda _m, inputs, _o, name=name: seen.update({name: inputs[0]})
        )
        model(images)
    torch.testing.assert_close(seen["normed"], F.layer_norm(seen["plain"], (24,)))
    assert plain.state_dict().keys() == normed.state_dict().keys()


def test_one_scale_selects_by_its_own_scores():
    model = half_selecting(3, multi_scale=False)
    assert model.gate is None
    images = torch.randn(1, 3, 64, 64)
    for block in model.layers[2].blocks:
        nn.init.zeros_(block.gate.weight)
        nn.init.constant_(block.gate.bias, 3.0)
    for block in model.layers[3].blocks:
        nn.init.zeros_(block.gate.weight)
        nn.init.constant_(block.gate.bias, -3.0)
    assert [p.counts for p in maps_of(model, images)] == [(16,), (16,), (0,), (0,)]


def selections():
    generator = torch.Generator().manual_seed(0)
    layout = LevelLayout.from_valid_sizes([(3, 4)], [[(3, 4)], [(2, 4)]])
    own, finer = (torch.randn(2, 12, generator=generator, requires_grad=True) for _ in range(2))
    label = torch.rand(2, 12, generator=generator) > 0.6
    return own, finer, Selection(torch.maximum(own, finer), own, None, layout, 3), label


@pytest.mark.parametrize("of", ["combined", "own"])
@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_the_loss_of_each_gate_and_its_positive_weight(of, weight):
    own, finer, selection, label = selections()
    loss = selection_loss([selection], {3: label}, of=of, positive_weight=weight)
    valid = selection.layout.valid_BN
    score = (own if of == "own" else torch.maximum(own, finer)).double().sigmoid()
    each = torch.where(label, -weight * score.log(), -(1 - score).log())
    torch.testing.assert_close(loss.double(), each[valid].mean())
    gradients = torch.autograd.grad(loss, (own, finer), allow_unused=True)
    if of == "own":
        assert (gradients[0][valid] != 0).all()
        assert gradients[1] is None
    else:
        # The larger score alone learns.
        assert torch.equal(gradients[0] != 0, valid & (own > finer))


def test_the_oracle_selects_what_is_annotated_in_training_and_evaluation():
    for training in (True, False):
        model = detector(training, selection="oracle", threshold=0.9, drop_path_rate=0.0)
        spt = find_spt(model)
        assert not any(gate.weight.requires_grad for gate in spt._gates())
        inputs = records()
        out = model(inputs)
        if training:
            assert "loss_selection" not in out
            out["loss_own"].backward()
            assert all(p.grad is not None for n, p in spt.named_parameters() if p.requires_grad)
            continue
        for image, record in zip(out, inputs, strict=True):
            for stride, mask_LHW in image["token_selection"].items():
                grid = mask_LHW.shape[1:]
                for mask_HW in mask_LHW:
                    expected = torch.zeros(grid, dtype=torch.bool)
                    for x1, y1, x2, y2 in record["instances"].gt_boxes.tensor.tolist():
                        rows = slice(int(y1 // stride), math.ceil(y2 / stride))
                        expected[rows, int(x1 // stride) : math.ceil(x2 / stride)] = True
                    assert torch.equal(mask_HW, expected)


def test_an_oracle_without_annotations_is_refused():
    model = detector(selection="oracle")
    with pytest.raises(ValueError, match=r"annotated images.*is_train=True"):
        model(records(annotated=False))
    with pytest.raises(ValueError, match="observed model"):
        find_spt(model)(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gate_loss": "both"}, "gate_loss must be one of"),
        ({"selection": "teacher"}, "selection must be one of"),
        ({"positive_weight": 0.0}, "positive_weight must be positive"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        small_spt(**options)


def test_the_log_tells_the_ratio_at_other_thresholds():
    from detectron2.utils.events import EventStorage

    model = detector(training=True, threshold=0.2)
    for block in find_spt(model)._select_pack_blocks():
        block.gate.bias.data.fill_(-1.5)
    find_spt(model).gate.bias.data.fill_(-3.0)
    with EventStorage() as storage:
        model(records())
        latest = {name: value for name, (value, _) in storage.latest().items()}
    ratios = [latest[f"select_ratio_at_{threshold:g}/stage3"] for threshold in THRESHOLDS]
    assert ratios == sorted(ratios, reverse=True)
    assert 0 < ratios[2] < 1
    assert 0 <= ratios[-1] < ratios[0] <= 1


@pytest.mark.parametrize("ratio", [0.2, 0.6])
def test_a_calibrated_threshold_selects_the_wanted_part(ratio):
    model = detector(threshold=0.01)
    batches = [records(annotated=False)] * 2
    found = calibrate_threshold(model, batches, ratio, tolerance=0.03, passes=20)
    assert abs(found.ratio - ratio) <= 0.05
    assert find_spt(model).rule.evaluation_threshold == found.threshold
    assert find_spt(model).rule.threshold == 0.01
    again = selected_ratios(model, batches)
    assert again == found.by_stride
    assert sum(again.values()) / len(again) == pytest.approx(found.ratio)


def test_what_cannot_be_calibrated_is_said():
    with pytest.raises(ValueError, match="has 0 SPT backbones"):
        calibrate_threshold(nn.Linear(1, 1), [], 0.5)
    with pytest.raises(ValueError, match=r"in \(0, 1\), got 1"):
        calibrate_threshold(detector(), [], 1)
    with pytest.raises(ValueError, match="keep_ratio always selects"):
        calibrate_threshold(detector(keep_ratio=0.5), [], 0.5)
    with pytest.raises(ValueError, match="at least one image"):
        calibrate_threshold(detector(), [], 0.5)


@torch.no_grad()
def test_packs_of_fixed_shape_hold_the_same_groups():
    layout = LevelLayout.from_valid_sizes([(6, 7)], [[(6, 7)], [(4, 5)], [(6, 7)]])
    mask = (torch.rand(3, 42) > 0.5) & layout.valid_BN
    mask[2] = False
    how = {"window_size": 3, "shift": 1, "length": 4}
    pack = pack_selected(mask, layout, **how)
    from tokendetr.tokens import window_order

    order = window_order(
        (6, 7), [(6, 7), (4, 5), (6, 7)], window_size=3, shift=1, device=mask.device
    )
    static = StaticPack(mask, order, 4)
    x = torch.randn(3, 42, 2)

    def groups(containers, segments):
        """The sets of rows that attend together."""
        return {
            frozenset(tuple(row.tolist()) for row in rows[segment == number])
            for rows, segment in zip(containers, segments, strict=True)
            for number in segment.unique().tolist()
            if number >= 0
        }

    ours = groups(static.reduce(x), static.segment_GT)
    assert ours == groups(pack.reduce(x), pack.segment_GT)
    assert torch.equal(static.restore(static.reduce(x), -x), pack.restore(pack.reduce(x), -x))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"keep_ratio": 0.4}, {"ffn_on": "selected"}])
def test_spt_exports_and_the_graph_selects_by_its_input(options):
    model = half_selecting(2, **options)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 3, 70, 96, generator=generator) for _ in range(2))
    program = torch.export.export(model, (first,)).module()
    for images in (first, 3 * second, torch.zeros_like(first)):
        expected, found = model(images), program(images)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"keep_ratio": 0.4}, {"ffn_on": "selected"}])
def test_spt_runs_in_bfloat16(options):
    model = half_selecting(2, **options).to(torch.bfloat16)
    for value in model(torch.randn(2, 3, 70, 96, dtype=torch.bfloat16)).values():
        assert value.dtype == torch.bfloat16
        assert value.isfinite().all()


def test_a_model_with_options_trains():
    model = detector(
        training=True,
        gate_loss="own",
        first_gate_norm=True,
        positive_weight=5.0,
        selection_loss_weight=1.0,
    )
    losses = model(records())
    sum(losses.values()).backward()
    spt = find_spt(model)
    assert isinstance(spt, SPT)
    assert all((gate.weight.grad != 0).any() for gate in spt._gates())


@pytest.mark.parametrize("ffn_on", ["all", "selected"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_optimized_blocks_compute_and_select_the_same(ffn_on, dtype):
    model = half_selecting(2, ffn_on=ffn_on)
    for block in model._select_pack_blocks():
        nn.init.normal_(block.attn.proj.bias)
    images = torch.randn(2, 3, 72, 90, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = model(images)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        chosen = maps_of(model, images)
        plain = model(images)
        with optimize(model):
            fast = model(images)
            for before, after in zip(chosen, maps_of(model, images), strict=True):
                assert dtype != torch.float32 or torch.equal(before.index_P, after.index_P)
        restored = model(images)
    for name, expected in exact.items():
        assert torch.equal(restored[name], plain[name])
        error, before = (
            (each[name].float() - expected).norm() / expected.norm() for each in (fast, plain)
        )
        assert 0 < error < max(1.5 * before, 1e-5)


def test_optimized_blocks_leave_out_no_step_that_a_hook_sees():
    model = half_selecting(2)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = []
    block = model._select_pack_blocks()[0]
    for part in (block.attn.proj_drop, block.attn.proj, block.mlp, block.norm2):
        part.register_forward_hook(lambda module, _inputs, _output: seen.append(module))
    with torch.no_grad(), optimize(model):
        model(images)
    assert seen == [block.attn.proj, block.attn.proj_drop, block.norm2, block.mlp]
