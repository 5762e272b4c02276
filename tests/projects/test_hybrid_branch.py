"""H-Deformable DETR: the one-to-many branch trains, and only trains."""

import pytest
import torch

from tests.small_detectors import build, h, record
from tokendetr.models.h_deformable_detr.h_deformable_transformer import blocked_between

BOXES = [[5, 5, 60, 50], [20, 10, 40, 30]]


def test_the_two_groups_do_not_see_each_other():
    blocked = blocked_between(5, 2, torch.device("cpu"))
    for row in range(5):
        for column in range(5):
            assert bool(blocked[row, column]) == ((row < 2) != (column < 2))


@pytest.mark.parametrize("name", ["h", "h_two_stage"])
def test_evaluation_uses_the_first_group_only(name):
    model = build(name).eval()
    decoded = []
    model.transformer.decoder.register_forward_hook(
        lambda module, inputs, output: decoded.append(output.states[0].shape[1])
    )
    with torch.no_grad():
        model([record(64, 96)])
        model.train()([record(64, 96, BOXES)])
    assert decoded == [12, 36]
    assert model.transformer.two_stage_num_proposals == 36  # evaluation left no trace


@pytest.mark.parametrize("name", ["h", "h_two_stage"])
def test_the_second_group_changes_no_one_to_one_loss(name):
    model = build(name).train()
    with torch.no_grad():
        hybrid = model([record(64, 96, BOXES)])
        other = {k: v for k, v in hybrid.items() if k.endswith("_one2many")}
        table = model.query_embedding.weight
        table[model.num_queries_one2one :] += 1.0
        changed = model([record(64, 96, BOXES)])
    for key, value in hybrid.items():
        if key in other:
            assert changed[key] != value
        else:
            torch.testing.assert_close(changed[key], value, rtol=1e-4, atol=1e-5)


def test_every_one_to_one_loss_has_its_one_to_many_twin():
    losses = build("h").train()([record(64, 96, BOXES)])
    one_to_one = {name for name in losses if not name.endswith("_one2many")}
    assert {name + "_one2many" for name in one_to_one} == set(losses) - one_to_one


def test_each_box_is_matched_k_times_in_the_second_group():
    model = build("h", k_one2many=5).train()
    seen = []
    match = model.criterion.matcher
    hook = match.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model([record(64, 96, BOXES)])
    hook.remove()
    counts = [torch.bincount(truth % 2).tolist() for ((_, truth),) in seen]
    assert counts == [[1, 1], [1, 1], [5, 5], [5, 5]]
    assert all(len(set(query.tolist())) == len(query) for ((query, _),) in seen)


def test_lambda_scales_and_zero_k_turns_the_branch_off():
    model = build("h").train()
    batch = [record(64, 96, BOXES)]
    full = model(batch)
    model.lambda_one2many = 0.5
    half = model(batch)
    for key, value in full.items():
        factor = 0.5 if key.endswith("_one2many") else 1.0
        torch.testing.assert_close(half[key], factor * value)
    model.k_one2many = 0
    assert not any(key.endswith("_one2many") for key in model(batch))


def test_a_tiny_image_leaves_the_second_group_empty():
    model = build("h_two_stage").train()
    losses = model([record(8, 8, [[1, 1, 6, 6]])])
    assert sum(losses.values()).isfinite()
    assert all(value == 0 for key, value in losses.items() if key.endswith("_one2many"))
    sum(losses.values()).backward()


def test_mixed_selection_takes_content_from_the_table_and_positions_from_proposals():
    mixed, plain = build("h_two_stage"), build("h_two_stage", mixed_selection=False)
    assert mixed.query_embedding.weight.shape == (36, 16)
    assert not hasattr(plain, "query_embedding")
    image = [record(64, 96)]
    for model, learned in ((mixed, True), (plain, False)):
        queries = []
        model.transformer.decoder.register_forward_pre_hook(
            lambda module, inputs, queries=queries: queries.append(inputs[0])
        )
        with torch.no_grad():
            model.eval()(image)
        same = torch.equal(queries[0].content_BQC[0], mixed.query_embedding.weight[:12])
        assert same == learned
        assert queries[0].reference_BQX.shape[-1] == 4


def test_model_and_transformer_must_agree():
    wrong = h(two_stage=True)
    arguments = {
        key: getattr(wrong, key)
        for key in ("backbone", "position_embedding", "neck", "transformer", "criterion")
    }
    arguments |= {
        "embed_dim": 16,
        "num_classes": 5,
        "num_queries_one2one": 12,
        "pixel_mean": [0.0] * 3,
        "pixel_std": [1.0] * 3,
        "with_box_refine": True,
        "as_two_stage": True,
    }
    with pytest.raises(ValueError, match="two_stage_num_proposals is 36, but the model has 22"):
        type(wrong)(**arguments, num_queries_one2many=10)
    with pytest.raises(ValueError, match="mixed_selection is True, but the model has False"):
        type(wrong)(**arguments, num_queries_one2many=24, mixed_selection=False)
