"""Losses against loops written out per query and class, with a brute-force assignment."""

import itertools
import math

import pytest
import torch
from detrex.modeling.matcher import HungarianMatcher

from tokendetr.detector import layer_weights
from tokendetr.detector.criterion import check_losses, positive_matches, world_average_boxes
from tokendetr.errors import ConfigError
from tokendetr.models.deformable_detr import DeformableCriterion
from tokendetr.models.dino import DINOCriterion

K, Q = 3, 4
COST = {"class": 2.0, "bbox": 5.0, "giou": 2.0}


def corners(box):
    cx, cy, w, h = box
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def naive_giou(a, b):
    ax0, ay0, ax1, ay1 = corners(a)
    bx0, by0, bx1, by1 = corners(b)
    inter = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - inter
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return inter / union - (hull - union) / hull


def naive_l1(a, b):
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def naive_assignment(logits, boxes, labels, truth):
    """Return the cheapest of all assignments: query of each target."""

    def cost(query, target):
        p = 1 / (1 + math.exp(-logits[query][labels[target]]))
        positive = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8)
        negative = 0.75 * p**2 * -math.log(1 - p + 1e-8)
        return (
            COST["class"] * (positive - negative)
            + COST["bbox"] * naive_l1(boxes[query], truth[target])
            - COST["giou"] * naive_giou(boxes[query], truth[target])
        )

    return min(
        itertools.permutations(range(len(boxes)), len(labels)),
        key=lambda queries: sum(cost(q, t) for t, q in enumerate(queries)),
    )


def naive_losses(outputs, targets, num_boxes, assigned=None):
    total = {"loss_class": 0.0, "loss_bbox": 0.0, "loss_giou": 0.0}
    for image, target in enumerate(targets):
        logits = outputs["pred_logits"][image].tolist()
        boxes = outputs["pred_boxes"][image].tolist()
        labels, truth = target["labels"].tolist(), target["boxes"].tolist()
        if assigned is None:
            pairs = list(enumerate(naive_assignment(logits, boxes, labels, truth)))
        else:
            pairs = assigned[image]
        wanted = {query: labels[t] for t, query in pairs}
        for query, row in enumerate(logits):
            for k, x in enumerate(row):
                p = 1 / (1 + math.exp(-x))
                if wanted.get(query) == k:
                    total["loss_class"] += 0.25 * (1 - p) ** 2 * -math.log(p)
                else:
                    total["loss_class"] += 0.75 * p**2 * -math.log(1 - p)
        for t, query in pairs:
            total["loss_bbox"] += naive_l1(boxes[query], truth[t])
            total["loss_giou"] += 1 - naive_giou(boxes[query], truth[t])
    return {name: value / num_boxes for name, value in total.items()}


def predictions(images=2, queries=Q):
    boxes = torch.cat(
        [torch.rand(images, queries, 2), 0.1 + 0.4 * torch.rand(images, queries, 2)], 2
    )
    return {"pred_logits": torch.randn(images, queries, K), "pred_boxes": boxes}


def truth(*counts):
    return [
        {
            "labels": torch.randint(K, (n,)),
            "boxes": torch.cat([torch.rand(n, 2), 0.1 + 0.4 * torch.rand(n, 2)], dim=1),
        }
        for n in counts
    ]


def build(kind=DINOCriterion, **options):
    matcher = HungarianMatcher(
        cost_class=COST["class"], cost_bbox=COST["bbox"], cost_giou=COST["giou"]
    )
    return kind(num_classes=K, matcher=matcher, weight_dict={}, **options)


def assert_losses(found, suffix, expected):
    for name, value in expected.items():
        assert float(found[name + suffix].detach()) == pytest.approx(value, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_every_layer_and_the_proposals_match_by_themselves(seed):
    torch.manual_seed(seed)
    targets = truth(2, 1)
    outputs = predictions()
    outputs["aux_outputs"] = [predictions(), predictions()]
    outputs["enc_outputs"] = predictions(queries=5)
    losses = build()(outputs, targets)
    assert_losses(losses, "", naive_losses(outputs, targets, 3))
    assert_losses(losses, "_0", naive_losses(outputs["aux_outputs"][0], targets, 3))
    assert_losses(losses, "_1", naive_losses(outputs["aux_outputs"][1], targets, 3))
    assert_losses(losses, "_enc", naive_losses(outputs["enc_outputs"], targets, 3))
    assert {name for name in losses if "_dn" in name} == {
        f"{name}_dn{layer}"
        for name in ("loss_class", "loss_bbox", "loss_giou")
        for layer in ("", "_0", "_1")
    }
    assert all(float(value) == 0.0 for name, value in losses.items() if "_dn" in name)


@pytest.mark.parametrize(
    "criterion", [build(DeformableCriterion), build(two_stage_binary_cls=True)]
)
def test_binary_encoder_targets_leave_the_ground_truth_alone(criterion):
    torch.manual_seed(0)
    targets = truth(2, 1)
    labels = [target["labels"].clone() for target in targets]
    outputs = predictions() | {"enc_outputs": predictions()}
    losses = criterion(outputs, targets)
    zero = [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]
    assert_losses(losses, "_enc", naive_losses(outputs["enc_outputs"], zero, 3))
    assert all(torch.equal(t["labels"], kept) for t, kept in zip(targets, labels, strict=True))


def test_denoising_losses_use_the_known_assignment():
    torch.manual_seed(0)
    targets = truth(2, 1)
    groups, size = 3, 4  # two places for positives, two for negatives
    known = predictions(queries=groups * size)
    known["aux_outputs"] = [predictions(queries=groups * size)]
    outputs = predictions() | {"aux_outputs": [predictions()]}
    metas = {"single_padding": size, "dn_num": groups, "output_known_lbs_bboxes": known}
    losses = build()(outputs, targets, metas)
    assigned = [
        [(t, group * size + t) for group in range(groups) for t in range(len(target["labels"]))]
        for target in targets
    ]
    assert_losses(losses, "_dn", naive_losses(known, targets, 3 * groups, assigned))
    expected = naive_losses(known["aux_outputs"][0], targets, 3 * groups, assigned)
    assert_losses(losses, "_dn_0", expected)


def test_positive_matches_skip_images_without_boxes():
    (first, second) = positive_matches(truth(2, 0), num_groups=2, group_size=4)
    assert [part.tolist() for part in first] == [[0, 1, 4, 5], [0, 1, 0, 1]]
    assert [part.tolist() for part in second] == [[], []]


@pytest.mark.parametrize("counts", [(0, 0), (2, 0)])
def test_images_without_boxes_have_class_losses_only(counts):
    torch.manual_seed(0)
    outputs = predictions()
    outputs["pred_logits"].requires_grad_()
    outputs["pred_boxes"].requires_grad_()
    targets = truth(*counts)
    losses = build()(outputs, targets)
    assert_losses(losses, "", naive_losses(outputs, targets, max(1, sum(counts))))
    sum(losses.values()).backward()
    assert outputs["pred_logits"].grad.isfinite().all()
    assert outputs["pred_boxes"].grad is not None


def test_normalizer_is_at_least_one():
    assert world_average_boxes(truth(0, 0), torch.device("cpu")) == 1.0
    assert world_average_boxes(truth(3, 2), torch.device("cpu")) == 5.0


def test_layer_weights_cover_every_layer():
    weights = layer_weights({"loss_class": 1.0, "loss_bbox": 5.0}, num_layers=3, suffixes=["_enc"])
    assert weights == {
        f"{name}{suffix}": value
        for name, value in (("loss_class", 1.0), ("loss_bbox", 5.0))
        for suffix in ("", "_enc", "_0", "_1")
    }


@pytest.mark.parametrize("name", ["loss_clas", "loss_mask_0", "class"])
def test_a_weight_of_no_loss_is_refused(name):
    weights = layer_weights(
        {"loss_class": 1.0, "loss_giou_dn": 2.0}, num_layers=2, suffixes=["_enc"]
    )
    check_losses(DINOCriterion(K, HungarianMatcher(), weights))
    with pytest.raises(ConfigError, match=f"{name}, and no loss has that name.*loss_bbox"):
        check_losses(DINOCriterion(K, HungarianMatcher(), {**weights, name: 1.0}))


def test_a_criterion_of_ones_own_may_have_further_losses():
    class Own(DINOCriterion):
        pass

    check_losses(Own(K, HungarianMatcher(), {"loss_mask": 1.0}))
