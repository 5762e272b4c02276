"""Training targets of Sparse DETR's scores and heads, and the reach of their gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from sparse_detr import SparseSparsifier, decoder_attention_loss
from tests.small_detectors import CLASSES, LAYERS, WIDTH, build, record
from tests.sparse_detr.sparse_detectors import RECORDS, sparse
from tokendetr.detector.token_losses import (
    add_detection_losses,
    attention_ranking_loss,
    attention_value_loss,
)
from tokendetr.encoder import current_pass
from tokendetr.encoder.aux_losses import ImageTargets
from tokendetr.encoder.decoder_attention import MAP_NAME
from tokendetr.encoder.forward_context import observe, record_tokens
from tokendetr.errors import UnsupportedDetectorError
from tokendetr.layers.deformable_attention import locations_and_weights
from tokendetr.models.dino import DINOCriterion

AUXILIARY = {
    f"loss_{part}_enc_{i}" for part in ("class", "bbox", "giou") for i in range(LAYERS - 1)
}


def naive_map(looks, layout, shift):
    """Sum over everything that the decoder samples, by loops in float64."""
    mass = [[0.0] * layout.num_tokens for _ in range(layout.batch_size)]
    for locations, weights in looks:
        images, queries, heads, levels, points = weights.shape
        locations, weights = locations.double().tolist(), weights.double().tolist()
        for b, q, m, lv, p in (
            (b, q, m, lv, p)
            for b in range(images)
            for q in range(queries)
            for m in range(heads)
            for lv in range(levels)
            for p in range(points)
        ):
            height, width = layout.level_shapes[lv]
            x = locations[b][q][m][lv][p][0] * width - shift
            y = locations[b][q][m][lv][p][1] * height - shift
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(y - row)) * (1 - abs(x - column))
                        token = layout.level_starts[lv] + row * width + column
                        mass[b][token] += share * weights[b][q][m][lv][p]
    return torch.tensor(mass)


def looks_of(model, records, queries: slice):
    """Return locations and weights of some queries in every decoder layer, and the traced pass."""
    looks, handles = [], []

    def look(attention, args, kwargs):
        query = args[0] + kwargs["query_pos"]
        reference = kwargs["reference_points"]
        shapes = kwargs["level_shapes"]
        looks.append(
            locations_and_weights(attention, query[:, queries], reference[:, queries], shapes)
        )

    for layer in model.transformer.decoder.layers:
        handles.append(layer.attentions[1].register_forward_pre_hook(look, with_kwargs=True))
    with record_tokens() as trace, torch.no_grad():
        losses = model(records)
    for handle in handles:
        handle.remove()
    return looks, trace.forwards[0], losses


@pytest.mark.parametrize("name", ["dino", "dn_two_stage", "h_two_stage", "dab_two_stage"])
def test_the_map_equals_a_loop_over_the_matching_queries(name):
    model = sparse(name, detector={"num_queries": 3}).train()
    matching = getattr(model.transformer, "two_stage_num_proposals", 3)
    # H-Deformable DETR's one-to-many queries, the last ones, are left out.
    matched = getattr(model, "num_queries_one2one", matching)
    queries = slice(-matching, None if matched == matching else matched - matching)
    looks, forward, _ = looks_of(model, RECORDS, queries)
    assert len(looks) == LAYERS
    expected = naive_map(looks, forward.layout, 0.5)
    torch.testing.assert_close(
        forward.maps[MAP_NAME].double(), expected.double(), rtol=1e-5, atol=1e-6
    )
    most = LAYERS * matched * 2  # the weights of each of two heads add up to 1
    assert 0 < float(expected.sum(dim=1).max()) <= most


@pytest.mark.parametrize("half_cell", [True, False])
def test_the_loss_is_the_cross_entropy_with_the_most_attended_tokens(half_cell):
    model = sparse(half_cell=half_cell, dam_weight=0.7).train()
    looks, forward, losses = looks_of(model, RECORDS, slice(-12, None))
    mass = naive_map(looks, forward.layout, 0.5 if half_cell else 0.0)
    score, total = forward.layers[0].scores["score"], 0.0
    for image in range(len(RECORDS)):
        valid = forward.layout.valid_BN[image].nonzero()[:, 0].tolist()
        count = int(0.3 * len(valid)) + 1
        best = sorted(valid, key=lambda i: (-float(mass[image][i]), i))[:count]
        target = torch.tensor([float(i in best) for i in valid])
        total += F.binary_cross_entropy_with_logits(score[image][valid], target) / len(RECORDS)
    assert float(losses["loss_dam"]) == pytest.approx(0.7 * float(total), rel=1e-5)


def test_the_scores_learn_from_their_own_loss_alone():
    model = sparse().train()
    losses = model(RECORDS)
    head = list(model.transformer.encoder.sparsifier.score_head.parameters())
    for name, loss in losses.items():
        grads = torch.autograd.grad(loss, head, retain_graph=True, allow_unused=True)
        touched = any(grad is not None and grad.abs().sum() > 0 for grad in grads)
        assert touched == (name == "loss_dam"), name


def test_the_scores_loss_reaches_the_projection_and_the_backbone_but_no_decoder():
    model = sparse().train()
    model(RECORDS)["loss_dam"].backward()
    touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert not [name for name in touched if ".decoder." in name or "encoder.layers" in name]
    assert any("backbone" in name for name in touched)
    assert "transformer.enc_output.weight" in touched


def test_each_layer_but_the_last_has_heads_that_its_losses_train():
    model = sparse().train()
    losses = model(RECORDS)
    assert set(losses) >= AUXILIARY
    assert not [name for name in losses if name.endswith(f"_enc_{LAYERS - 1}")]
    sparsifier = model.transformer.encoder.sparsifier
    heads = [*sparsifier.class_embed.parameters(), *sparsifier.bbox_embed.parameters()]
    for name in losses.keys() - AUXILIARY:
        grads = torch.autograd.grad(losses[name], heads, retain_graph=True, allow_unused=True)
        assert all(grad is None for grad in grads), name
    sum(losses[name] for name in AUXILIARY).backward()
    assert all(parameter.grad is not None for parameter in heads)


class Context:
    """The part of a forward context that the losses use."""

    def __init__(self, criterion, targets) -> None:
        self.criterion, self.targets, self.losses = criterion, targets, {}
        self.add = self.losses.__setitem__


def auxiliary_losses(model, records) -> dict[str, float]:
    with torch.no_grad():
        return {k: float(v) for k, v in model(records).items() if k in AUXILIARY}


def test_padding_entries_neither_match_nor_train():
    """A batch's losses are those of its images alone, each without its padding entries."""
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 7, CLASSES), torch.rand(2, 7, 4) * 0.3 + 0.3
    counts, targets = [7, 2], [torch.rand(3, 4) * 0.2 + 0.4, boxes[1, 2:5].clone()]
    labels = [torch.tensor([0, 1, 2]), logits[1, 2:5].argmax(dim=1)]  # padding fits perfectly
    valid = torch.arange(7) < torch.tensor(counts)[:, None]
    criterion = build("dino").criterion

    def losses(logits, boxes, valid, images):
        truth = [ImageTargets(targets[i], labels[i], (10, 10)) for i in images]
        context = Context(criterion, truth)
        add_detection_losses(context, logits, boxes, valid_BK=valid, num_boxes=3.0, suffix="_enc_0")
        return context.losses

    logits.requires_grad_()
    together = losses(logits, boxes, valid, [0, 1])
    alone = [
        losses(logits[i, None, :n], boxes[i, None, :n], None, [i]) for i, n in enumerate(counts)
    ]
    assert set(together) == {f"loss_{part}_enc_0" for part in ("class", "bbox", "giou")}
    for name, loss in together.items():
        torch.testing.assert_close(loss, alone[0][name] + alone[1][name])
    (gradient,) = torch.autograd.grad(together["loss_class_enc_0"], logits)
    assert gradient[valid].any(dim=-1).all() and not gradient[~valid].any()


def test_padding_is_not_seen_by_a_criterion_that_takes_logarithms(monkeypatch):
    model = sparse().train()

    def log_loss(outputs, targets, indices, num_boxes):
        return {"loss_class": -outputs["pred_logits"].sigmoid().log().sum() / num_boxes}

    monkeypatch.setattr(model.criterion, "loss_labels", log_loss)
    losses = auxiliary_losses(model, RECORDS)  # two image sizes, so there is padding
    assert all(torch.tensor(value).isfinite() for value in losses.values())


def test_a_detector_without_two_stages_is_named_when_the_model_is_built():
    model = build("deformable")
    heads = {"embed_dim": WIDTH, "num_classes": CLASSES, "num_layers": LAYERS}
    model.transformer.encoder.sparsifier = SparseSparsifier(**heads)
    with pytest.raises(UnsupportedDetectorError, match="two-stage"):
        observe(model)
    model.transformer.encoder.sparsifier = SparseSparsifier(**heads, projection="own")
    observe(model)


def test_the_published_rule_for_padding_trains_the_entries_beyond_an_images_count():
    """They are the image's next best tokens, up to the largest image's count."""
    ours, theirs = (
        auxiliary_losses(sparse(padding=rule, detector={"dn_number": 0}).train(), RECORDS)
        for rule in ("left_out", "counted")
    )
    assert theirs["loss_class_enc_0"] > ours["loss_class_enc_0"]


def test_heads_are_trained_by_the_detectors_criterion_with_its_weights():
    model = sparse().train()
    with torch.no_grad():
        before = auxiliary_losses(model, RECORDS)
        model.criterion.weight_dict["loss_bbox"] *= 3
        after = auxiliary_losses(model, RECORDS)
    assert isinstance(model.criterion, DINOCriterion)
    assert after["loss_bbox_enc_0"] == pytest.approx(3 * before["loss_bbox_enc_0"], rel=1e-5)
    assert after["loss_class_enc_0"] == pytest.approx(before["loss_class_enc_0"], rel=1e-5)


def test_objectness_has_a_detection_head_before_the_first_layer():
    model = sparse(selection="objectness").train()
    losses = model(RECORDS)
    assert {"loss_class_tokens", "loss_bbox_tokens", "loss_giou_tokens"} <= set(losses)
    assert "loss_dam" not in losses
    sum(losses.values()).backward()
    sparsifier = model.transformer.encoder.sparsifier
    assert all(parameter.grad is not None for parameter in sparsifier.parameters())


def test_random_has_nothing_to_learn_but_the_heads():
    model = sparse(selection="random", auxiliary_heads=False)
    assert not list(model.transformer.encoder.sparsifier.parameters())
    assert "loss_dam" not in model.train()(RECORDS)


def test_images_without_boxes_train():
    losses = sparse().train()([record(64, 96, seed=3), record(48, 64, seed=4)])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_bbox_enc_0"] == 0


def test_hooks_are_gone_after_the_pass_also_when_it_fails():
    model = sparse().train()
    attention = model.transformer.decoder.layers[0].attentions[1]
    model(RECORDS)
    assert not attention._forward_pre_hooks
    model.transformer.decoder.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(RECORDS)
    assert not attention._forward_pre_hooks and current_pass().losses is None


def test_activation_checkpointing_counts_every_loss_once():
    plain, again = (
        sparse(detector={"dn_number": 0}),
        sparse(detector={"dn_number": 0, "use_checkpoint": True}),
    )
    again.transformer.encoder.use_checkpoint = True
    results = []
    for model in (plain.train(), again.train()):
        losses = model(RECORDS)
        sum(losses.values()).backward()
        results.append((losses, [p.grad for p in model.parameters()]))
    for name, loss in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], loss)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("selection", ["dam", "objectness"])
def test_it_trains_in_bfloat16(selection):
    model = sparse(selection=selection).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(RECORDS)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_padding_counts_nothing_in_the_loss():
    score = torch.tensor([[3.0, -1.0, 9.0], [0.5, 2.0, -4.0]])
    mass = torch.tensor([[0.1, 0.2, 5.0], [1.0, 0.0, 2.0]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    loss = decoder_attention_loss(score, mass, [1, 2], valid_BN=valid)
    bce = F.binary_cross_entropy_with_logits
    first = bce(score[0, :2], torch.tensor([0.0, 1.0]))
    second = bce(score[1], torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(loss, (first + second) / 2)


def test_scores_may_be_trained_for_the_attention_s_values():
    score, mass = torch.randn(2, 6), torch.rand(2, 6)
    valid = torch.arange(6) < torch.tensor([[6], [4]])
    expected = []
    for image, count in enumerate((6, 4)):
        target = mass[image, :count] / mass[image, :count].max()
        expected.append(F.smooth_l1_loss(score[image, :count].sigmoid(), target).item())
    found = attention_value_loss(score, mass, valid).item()
    assert found == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_scores_may_be_trained_for_the_attention_s_order():
    mass = torch.tensor([[0.1, 0.4, 0.2, 0.3, 9.0]])
    valid = torch.tensor([[True] * 4 + [False]])
    right, wrong = 10 * mass, -10 * mass
    torch.manual_seed(0)
    assert attention_ranking_loss(right, mass, valid) < 1e-5
    assert attention_ranking_loss(wrong, mass, valid) > 1
    score = torch.zeros(1, 5, requires_grad=True)
    for _ in range(200):  # it is learned, and padding takes no part
        loss = attention_ranking_loss(score, mass, valid)
        (gradient,) = torch.autograd.grad(loss, score)
        score = (score - 0.1 * gradient).detach().requires_grad_()
    assert score[0, :4].argsort().tolist() == [0, 2, 3, 1] and score[0, 4] == 0


@pytest.mark.parametrize("objective", ["smooth_l1", "ranking"])
def test_other_objectives_train_a_detector_s_scores(objective):
    model = sparse()
    model.transformer.encoder.sparsifier.objective = objective
    losses = model.train()(RECORDS)
    assert losses["loss_dam"].isfinite() and losses["loss_dam"] > 0
    head = model.transformer.encoder.sparsifier.score_head
    losses["loss_dam"].backward()
    assert any(
        parameter.grad is not None and parameter.grad.any() for parameter in head.parameters()
    )
    with pytest.raises(ValueError, match="objective must be one of"):
        SparseSparsifier(objective="mse")
