"""Matchers, losses and criteria against brute force and written-out formulas."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from detrex.layers import box_cxcywh_to_xyxy, generalized_box_iou
from detrex.modeling import SetCriterion
from detrex.modeling.criterion import BaseCriterion
from detrex.modeling.losses import (
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    GIoULoss,
    L1Loss,
    sigmoid_focal_loss,
    smooth_l1_loss,
    weight_reduce_loss,
)
from detrex.modeling.matcher import (
    CrossEntropyCost,
    FocalLossCost,
    GIoUCost,
    HungarianMatcher,
    L1Cost,
    ModifedMatcher,
)


def batch(queries=5, sizes=(3, 0, 2), classes=4):
    outputs = {
        "pred_logits": torch.randn(len(sizes), queries, classes),
        "pred_boxes": torch.rand(len(sizes), queries, 4),
    }
    targets = [{"labels": torch.randint(classes, (n,)), "boxes": torch.rand(n, 4)} for n in sizes]
    return outputs, targets


def naive_focal(logit, positive):
    """Return the focal loss of one logit in Python numbers."""
    p = 1 / (1 + math.exp(-logit))
    if positive:
        return -0.25 * (1 - p) ** 2 * math.log(p)
    return -0.75 * p**2 * math.log(1 - p)


def pair_cost(logits, box, target, index):
    """Return the matching cost of one query and one target with weights 2, 5, 2."""
    logit = logits[target["labels"][index]].item()
    truth = target["boxes"][index]
    overlap = generalized_box_iou(box_cxcywh_to_xyxy(box[None]), box_cxcywh_to_xyxy(truth[None]))
    classification = naive_focal(logit, True) - naive_focal(logit, False)
    return 2 * classification + 5 * (box - truth).abs().sum().item() - 2 * overlap.item()


@pytest.mark.parametrize("kind", ["hungarian", "modified"])
def test_matching_is_the_best_of_all_assignments(kind):
    outputs, targets = batch()
    if kind == "hungarian":
        matches = HungarianMatcher(2.0, 5.0, 2.0)(outputs, targets)
    else:
        matches = ModifedMatcher()(
            outputs["pred_logits"],
            outputs["pred_boxes"],
            [t["labels"] for t in targets],
            [t["boxes"] for t in targets],
        )
    for image, target in enumerate(targets):
        count = len(target["labels"])
        logits, boxes = outputs["pred_logits"][image], outputs["pred_boxes"][image]

        def total(queries, truths, logits=logits, boxes=boxes, target=target):
            pairs = zip(queries, truths, strict=True)
            return sum(pair_cost(logits[q], boxes[q], target, t) for q, t in pairs)

        best = min(total(qs, range(count)) for qs in itertools.permutations(range(5), count))
        queries, truths = matches[image]
        assert queries.dtype == truths.dtype == torch.int64
        assert sorted(truths.tolist()) == list(range(count))
        assert total(queries.tolist(), truths.tolist()) == pytest.approx(best, abs=1e-5)


def test_more_boxes_than_queries_match_every_query():
    outputs, targets = batch(queries=2, sizes=(4,))
    ((queries, truths),) = HungarianMatcher()(outputs, targets)
    assert queries.tolist() == [0, 1] and len(set(truths.tolist())) == 2


def test_softmax_cost_counts_probabilities():
    outputs, targets = batch(sizes=(2,))
    matcher = HungarianMatcher(1, 0, 0, cost_class_type="ce_cost")
    ((queries, truths),) = matcher(outputs, targets)
    probability = outputs["pred_logits"][0].softmax(-1)[:, targets[0]["labels"]]
    best = max(
        (probability[i, 0] + probability[j, 1]).item()
        for i, j in itertools.permutations(range(5), 2)
    )
    assert probability[queries, truths].sum().item() == pytest.approx(best)
    cost = CrossEntropyCost(2.0)(outputs["pred_logits"][0], targets[0]["labels"])
    torch.testing.assert_close(cost, -2 * probability)


def test_matching_in_half_precision_works():
    outputs, targets = batch()
    halves = {name: value.bfloat16() for name, value in outputs.items()}
    sizes = [len(queries) for queries, _ in HungarianMatcher()(halves, targets)]
    assert sizes == [3, 0, 2]


@pytest.mark.parametrize("name", ["pred_logits", "pred_boxes"])
def test_matching_names_the_image_that_is_not_finite(name):
    outputs, targets = batch()
    outputs[name][1, 2] = float("nan")
    with pytest.raises(ValueError, match=rf"{name} of images \[1\]"):
        HungarianMatcher()(outputs, targets)


def test_matcher_rejects_bad_arguments():
    with pytest.raises(ValueError, match="cannot all be 0"):
        HungarianMatcher(0, 0, 0)
    with pytest.raises(ValueError, match="got 'l1'"):
        HungarianMatcher(cost_class_type="l1")


def test_cost_modules_equal_their_formulas():
    outputs, (target, *_) = batch()
    logits, boxes = outputs["pred_logits"][0], outputs["pred_boxes"][0]
    focal = FocalLossCost(weight=3.0)(logits, target["labels"])
    logit = logits[4, target["labels"][1]].item()
    expected = 3 * (naive_focal(logit, True) - naive_focal(logit, False))
    assert focal[4, 1].item() == pytest.approx(expected, rel=1e-4)
    distance = L1Cost(2.0)(boxes, target["boxes"])
    assert distance[2, 0].item() == pytest.approx(
        2 * (boxes[2] - target["boxes"][0]).abs().sum().item(), rel=1e-5
    )
    corners = box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(target["boxes"])
    torch.testing.assert_close(GIoUCost(2.0)(*corners), -2 * generalized_box_iou(*corners))


def test_focal_loss_equals_the_naive_one():
    logits, targets = torch.randn(6, 3), (torch.rand(6, 3) < 0.3).float()
    expected = torch.tensor(
        [
            [naive_focal(x, bool(t)) for x, t in zip(*rows, strict=True)]
            for rows in zip(logits.tolist(), targets.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets, reduction="none"), expected)
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets), expected.mean())
    balanced = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=0)
    torch.testing.assert_close(balanced, F.binary_cross_entropy_with_logits(logits, targets))


def test_focal_loss_of_labels_treats_the_last_label_as_background():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 3, 2, 1])
    one_hot = torch.eye(4)[labels][:, :3]
    expected = 2 * sigmoid_focal_loss(logits, one_hot, avg_factor=5)
    torch.testing.assert_close(FocalLoss(loss_weight=2)(logits, labels, avg_factor=5), expected)
    of_probabilities = FocalLoss(loss_weight=2, activated=True)
    torch.testing.assert_close(of_probabilities(logits.sigmoid(), labels, avg_factor=5), expected)


@pytest.mark.parametrize("logit", [-80.0, 17.0, 80.0])
def test_focal_loss_and_its_gradient_stay_finite(logit):
    x = torch.full((1, 2), logit, requires_grad=True)
    loss = sigmoid_focal_loss(x, torch.tensor([[0.0, 1.0]]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()


def test_box_losses_equal_their_formulas():
    pred, truth = torch.rand(2, 5, 4)
    torch.testing.assert_close(L1Loss(loss_weight=5)(pred, truth), 5 * F.l1_loss(pred, truth))
    torch.testing.assert_close(
        smooth_l1_loss(pred, truth, beta=0.3), F.smooth_l1_loss(pred, truth, beta=0.3)
    )
    corners = box_cxcywh_to_xyxy(pred), box_cxcywh_to_xyxy(truth)
    expected = (1 - generalized_box_iou(*corners).diagonal()).sum() / 3
    torch.testing.assert_close(GIoULoss()(*corners, avg_factor=3), expected)
    none = torch.zeros(0, 4, requires_grad=True)
    for loss in (L1Loss(), GIoULoss()):
        assert loss(none, torch.zeros(0, 4), avg_factor=1.0).item() == 0.0
    with pytest.raises(ValueError, match="differ in shape"):
        L1Loss()(torch.zeros(2, 4), torch.zeros(1, 4))


def test_dice_and_cross_entropy_losses_equal_their_formulas():
    mask = torch.tensor([[1.0, 1, 0, 0]])
    logits = torch.tensor([[9.0, -9, 9, -9]])
    # overlap 1 of 2 + 2 pixels: 1 - (2 + 1) / (4 + 1)
    assert DiceLoss(eps=0.0)(logits, mask).item() == pytest.approx(0.4, abs=1e-3)
    scores, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 1, 1])
    ignoring = CrossEntropyLoss(ignore_index=1, avg_non_ignore=True)
    torch.testing.assert_close(
        ignoring(scores, labels), F.cross_entropy(scores, labels, ignore_index=1)
    )
    with pytest.warns(UserWarning, match="avg_non_ignore"):
        CrossEntropyLoss(ignore_index=1)


def test_reduction_with_weights():
    loss = torch.tensor([1.0, 2.0, 3.0])
    weight = torch.tensor([1.0, 0.0, 2.0])
    assert weight_reduce_loss(loss, weight, "sum").item() == 7
    assert weight_reduce_loss(loss, weight, "mean", avg_factor=2).item() == pytest.approx(3.5)
    assert weight_reduce_loss(loss, None, "none", avg_factor=2).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="avg_factor"):
        weight_reduce_loss(loss, None, "sum", avg_factor=2)
    with pytest.raises(ValueError, match="differ in dimensions"):
        weight_reduce_loss(loss, weight[None])
    with pytest.raises(ValueError, match="reduction must be"):
        weight_reduce_loss(loss, None, "max")


def expected_losses(outputs, targets, matches, classes=4):
    """Return the losses of one layer, written out over matched pairs."""
    num_boxes = sum(len(t["labels"]) for t in targets)
    positive = {
        (image, q, targets[image]["labels"][t].item())
        for image, match in enumerate(matches)
        for q, t in zip(*(m.tolist() for m in match), strict=True)
    }
    focal = sum(
        naive_focal(outputs["pred_logits"][b, q, c].item(), (b, q, c) in positive)
        for b, q, c in itertools.product(range(len(targets)), range(5), range(classes))
    )
    distance = overlap = 0.0
    for image, (queries, truths) in enumerate(matches):
        for query, truth in zip(queries, truths, strict=True):
            pred, box = outputs["pred_boxes"][image, query], targets[image]["boxes"][truth]
            distance += (pred - box).abs().sum().item()
            corners = box_cxcywh_to_xyxy(pred[None]), box_cxcywh_to_xyxy(box[None])
            overlap += 1 - generalized_box_iou(*corners).item()
    found = {"loss_class": focal, "loss_bbox": distance, "loss_giou": overlap}
    return {name: value / num_boxes for name, value in found.items()}


def test_set_criterion_equals_the_written_out_losses_of_all_layers():
    outputs, targets = batch()
    aux, _ = batch()
    matcher = HungarianMatcher(2.0, 5.0, 2.0)
    criterion = SetCriterion(4, matcher, {"loss_class": 1.0})
    losses, matches = criterion({**outputs, "aux_outputs": [aux]}, targets, return_indices=True)
    expected = expected_losses(outputs, targets, matcher(outputs, targets))
    of_aux = expected_losses(aux, targets, matcher(aux, targets))
    expected |= {f"{name}_0": value for name, value in of_aux.items()}
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(
        expected, rel=1e-4
    )
    for found, wanted in ((matches[-1], outputs), (matches[0], aux)):
        for pair, other in zip(found, matcher(wanted, targets), strict=True):
            assert torch.equal(pair[0], other[0]) and torch.equal(pair[1], other[1])


def test_base_criterion_is_the_weighted_set_criterion():
    outputs, targets = batch()
    matcher = HungarianMatcher(2.0, 5.0, 2.0)
    plain = SetCriterion(4, matcher, {})({**outputs, "aux_outputs": [outputs]}, targets)
    weights = {"class": 1.0, "bbox": 5.0, "giou": 2.0}
    weighted = BaseCriterion(4)({**outputs, "aux_outputs": [outputs]}, targets)
    assert set(weighted) == set(plain)
    for name, value in weighted.items():
        factor = weights[name.split("_")[1]]
        torch.testing.assert_close(value, factor * plain[name], rtol=1e-4, atol=1e-6)


def test_softmax_criterion_weighs_no_object():
    outputs, targets = batch(classes=5, sizes=(1,))
    targets[0]["labels"] = torch.tensor([2])
    matcher = HungarianMatcher(cost_class_type="ce_cost")
    criterion = SetCriterion(4, matcher, {}, ["class"], 0.1, "ce_loss")
    labels = torch.full((1, 5), 4)
    labels[0, matcher(outputs, targets)[0][0]] = 2
    expected = F.cross_entropy(
        outputs["pred_logits"].flatten(0, 1), labels.flatten(), torch.tensor([1.0, 1, 1, 1, 0.1])
    )
    torch.testing.assert_close(criterion(outputs, targets)["loss_class"], expected)


def test_criterion_without_any_box_has_finite_losses_and_gradients():
    outputs, targets = batch(sizes=(0, 0))
    outputs = {name: value.requires_grad_() for name, value in outputs.items()}
    losses = SetCriterion(4, HungarianMatcher(), {})(outputs, targets)
    sum(losses.values()).backward()
    assert losses["loss_bbox"] == 0 and losses["loss_giou"] == 0 and losses["loss_class"] > 0
    assert all(torch.isfinite(value.grad).all() for value in outputs.values())


def test_criterion_rejects_unknown_losses():
    outputs, targets = batch()
    with pytest.raises(KeyError, match="unknown loss 'masks'"):
        SetCriterion(4, HungarianMatcher(), {}, losses=["masks"])(outputs, targets)
    with pytest.raises(ValueError, match="got 'hinge'"):
        SetCriterion(4, HungarianMatcher(), {}, loss_class_type="hinge")
