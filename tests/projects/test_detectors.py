"""Every detector handles ordinary and degenerate batches, on small networks."""

import copy
import io

import pytest
import torch

from tests.small_detectors import (
    NAMES,
    assert_same,
    build,
    detections,
    record,
    total,
    trained_parameters,
)

BOXES = [[5, 5, 60, 50], [20, 10, 40, 30], [50, 20, 90, 60]]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def whole_copy(model):
    """Return a deep copy that went through a file as a whole."""
    file = io.BytesIO()
    torch.save(copy.deepcopy(model), file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def turn_off_denoising(model):
    for option in ("dn_number", "denoising_groups"):
        if hasattr(model, option):
            setattr(model, option, 0)


def test_images_smaller_than_the_number_of_queries(name):
    model = build(name, num_queries=60)
    records = [record(8, 8, seed=1), record(1, 1, seed=2), record(96, 128, seed=3)]
    together = detections(model, records)
    for one, found in zip(records, together, strict=True):
        assert_same(found, detections(model, [one])[0])
        assert found.scores.isfinite().all()
        assert len(found) > 0
    model.train()
    losses = model([record(8, 8, [[1, 1, 5, 6]]), record(1, 1)])
    assert torch.isfinite(total(losses))


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (17, 31)])
def test_odd_image_sizes_train_and_evaluate(name, size):
    model = build(name)
    (found,) = detections(model, [record(*size)])
    assert found.pred_boxes.tensor.isfinite().all()
    assert torch.isfinite(total(model.train()([record(*size, [[0, 0, 1, 1]])])))


@pytest.mark.parametrize("boxes", [([], []), (BOXES, []), ([], BOXES[:1])])
def test_images_without_boxes_train_the_same_parameters(name, boxes):
    model = build(name)
    with_boxes = trained_parameters(model, [record(64, 96, BOXES), record(64, 96, BOXES)])
    found = trained_parameters(model, [record(64, 96, image) for image in boxes])
    assert found == with_boxes == {n for n, _ in model.named_parameters()}
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()


def test_training_lowers_the_loss(name):
    model = build(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    records = [record(64, 96, BOXES[:2], seed=1), record(48, 64, BOXES[:1], seed=2)]
    history = []
    # two stages with the tokens as content: early on every step selects other proposals
    for _ in range(40 if name in ("dab_two_stage", "dn_two_stage", "h_two_stage") else 12):
        loss = sum(v for k, v in model(records).items() if "_dn" not in k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert sum(history[-3:]) < 0.9 * sum(history[:3])


def test_evaluation_reports_at_most_the_wanted_detections_sorted(name):
    model = build(name)
    (found,) = detections(model, [record(64, 96)])
    assert len(found) == model.select_box_nums_for_evaluation
    assert (found.scores.diff() <= 0).all()
    assert found.pred_classes.max() < model.num_classes


def test_copies_and_reloads_are_the_same_network(name):
    model = build(name)
    image = [record(64, 96, seed=4)]
    expected = detections(model, image)[0]
    assert_same(detections(copy.deepcopy(model), image)[0], expected)
    fresh = build(name)
    for parameter in fresh.parameters():
        parameter.data.zero_()
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert_same(detections(fresh, image)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_converted_detector_trains_and_evaluates(name, dtype):
    model = build(name)
    records = [record(64, 96, BOXES[:2], seed=1), record(48, 64, BOXES[:1], seed=2)]
    exact = model.train()(records)
    losses = model.to(dtype)(records)
    wide = torch.promote_types(dtype, torch.float32)
    assert all(loss.dtype == wide for loss in losses.values())
    if dtype == torch.float64:
        for key in [key for key in losses if "_dn" not in key]:  # others have noise of their own
            torch.testing.assert_close(losses[key].float(), exact[key], rtol=1e-3, atol=1e-4)
    assert float(total(losses).detach()) == pytest.approx(float(total(exact).detach()), rel=0.2)
    total(losses).backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in model.parameters())
    for found in detections(model, records):
        assert found.scores.dtype == wide
        assert found.pred_boxes.tensor.isfinite().all()


def test_a_converted_detector_finds_what_it_found(name):
    model = build(name)
    image = [record(64, 96, seed=4)]
    (exact,) = detections(model, image)
    (found,) = detections(model.to(torch.bfloat16), image)
    torch.testing.assert_close(found.scores, exact.scores, rtol=0, atol=0.02)
    (again,) = detections(whole_copy(model), image)
    assert torch.equal(again.pred_boxes.tensor, found.pred_boxes.tensor)


def test_bfloat16_autocast_is_finite_and_close(name):
    model = build(name)
    records = [record(64, 96, BOXES[:2], seed=1)]
    turn_off_denoising(model)
    exact = total(model.train()(records))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(records)
    rounded = total(losses)
    rounded.backward()
    assert abs(float(rounded.detach()) / float(exact.detach()) - 1) < 0.1
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_activation_checkpoints_change_no_gradient():
    gradients = []
    for use_checkpoint in (False, True):
        model = build("dino", use_checkpoint=use_checkpoint, dn_number=0).train()
        total(model([record(64, 96, BOXES)])).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient)


def test_aux_loss_off_trains_the_last_layer_only(name):
    model = build(name)
    model.aux_loss = False
    losses = model.train()([record(64, 96, BOXES)])
    assert "loss_class" in losses
    assert not any(key.endswith("_0") for key in losses)


def test_neck_and_transformer_must_agree_on_levels(name):
    model = build(name)
    model.transformer.num_feature_levels = 4
    with pytest.raises(ValueError, match="gives 3 levels.*num_feature_levels=4.*neck.num_outs"):
        model.eval()([record(64, 96)])


def test_two_stages_must_be_set_alike_in_model_and_transformer():
    from tests.small_detectors import deformable

    with pytest.raises(ValueError, match="needs model.with_box_refine=True"):
        deformable(two_stage=True)
    two_stage = deformable(refine=True, two_stage=True)
    parts = {key: getattr(two_stage, key) for key in ("backbone", "position_embedding", "neck")}
    with pytest.raises(ValueError, match="as_two_stage is False.*True: set both to the same value"):
        type(two_stage)(
            **parts,
            transformer=two_stage.transformer,
            criterion=two_stage.criterion,
            embed_dim=16,
            num_classes=5,
            num_queries=12,
            pixel_mean=[0.0] * 3,
            pixel_std=[1.0] * 3,
        )


def test_images_of_training_are_stored_when_due():
    from detectron2.utils.events import EventStorage

    model = build("dino", vis_period=2).train()
    with EventStorage(start_iter=0) as storage:
        model([record(64, 96, BOXES)])
        assert len(storage._vis_data) == 1
        storage.step()
        model([record(64, 96, BOXES)])
        assert len(storage._vis_data) == 1
