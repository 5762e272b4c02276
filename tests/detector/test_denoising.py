"""Contrastive denoising: groups, noise ranges, hidden ground truth, images without boxes."""

import pytest
import torch
from detrex.layers import box_cxcywh_to_xyxy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.small_detectors import build, record
from tokendetr.detector import contrastive_queries, noised_queries
from tokendetr.detector.criterion import positive_matches
from tokendetr.detector.denoising import flip_labels, shift_corners

NO_NOISE = {"label_noise_ratio": 0.0, "box_noise_scale": 0.0}


def targets(*counts: int, classes: int = 7) -> list[dict]:
    """Boxes in the middle of the image, so that noise does not reach the border."""
    made = []
    for count in counts:
        center = 0.45 + 0.1 * torch.rand(count, 2)
        made.append(
            {
                "labels": torch.randint(classes, (count,)),
                "boxes": torch.cat([center, 0.05 + 0.1 * torch.rand(count, 2)], dim=1),
            }
        )
    return made


def embedding(classes: int = 7) -> nn.Embedding:
    torch.manual_seed(1)
    return nn.Embedding(classes, 4)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.integers(1, 40),
)
def test_groups_fill_the_wanted_number_for_the_fullest_image(counts, dn_number):
    queries = contrastive_queries(targets(*counts), embedding(), dn_number=dn_number, **NO_NOISE)
    largest = max(counts)
    if largest == 0:
        assert queries is None
        return
    assert queries.num_groups == max(1, dn_number // largest)
    assert queries.group_size == 2 * largest
    assert queries.content_BDC.shape == (len(counts), queries.num_queries, 4)
    assert queries.reference_BD4.shape == (len(counts), queries.num_queries, 4)


def test_zero_queries_wanted_turns_denoising_off():
    assert contrastive_queries(targets(3), embedding(), dn_number=0, **NO_NOISE) is None


def test_without_noise_every_group_repeats_the_ground_truth_twice():
    truth = targets(3, 1)
    labels = embedding()
    queries = contrastive_queries(truth, labels, dn_number=6, **NO_NOISE)
    for image, target in enumerate(truth):
        count = len(target["labels"])
        content = queries.content_BDC[image].view(queries.num_groups, 2, 3, 4)
        boxes = queries.reference_BD4[image].view(queries.num_groups, 2, 3, 4)
        for group in range(queries.num_groups):
            for half in range(2):
                torch.testing.assert_close(content[group, half, :count], labels(target["labels"]))
                torch.testing.assert_close(boxes[group, half, :count], target["boxes"])
                assert (content[group, half, count:] == 0).all()
                assert (boxes[group, half, count:] == 0.5).all()


def test_positives_move_less_and_negatives_more_than_the_scale():
    scale = 0.4  # corners do not cross, so a box shows the noise of both corners
    torch.manual_seed(0)
    truth = targets(20)
    queries = contrastive_queries(
        truth, embedding(), dn_number=400, label_noise_ratio=0.0, box_noise_scale=scale
    )
    corners = box_cxcywh_to_xyxy(queries.reference_BD4[0].view(-1, 2, 20, 4))
    moved = corners - box_cxcywh_to_xyxy(truth[0]["boxes"])
    relative = moved / (truth[0]["boxes"][:, [2, 3, 2, 3]] / 2 * scale)
    positive, negative = relative[:, 0], relative[:, 1].abs()
    assert positive.abs().max() <= 1 + 1e-3
    assert negative.min() >= 1 - 1e-3
    assert negative.max() <= 2 + 1e-3
    assert 0.45 < positive.abs().mean() < 0.55
    assert 1.45 < negative.mean() < 1.55
    assert 0.4 < (positive > 0).float().mean() < 0.6


def test_crossed_corners_keep_their_place():
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]]).expand(200, 4)
    moved = (box_cxcywh_to_xyxy(shift_corners(box, torch.tensor(1.0), 1.0)) - 0.5) / 0.1
    distance = (moved - torch.tensor([-1.0, -1.0, 1.0, 1.0])).abs()
    assert distance.min() >= 1 - 1e-4 and distance.max() <= 2 + 1e-4
    assert (moved[:, 0] > moved[:, 2]).any()


def test_noised_corners_stay_in_the_image():
    boxes = torch.tensor([[0.05, 0.95, 0.1, 0.1]]).expand(500, 4)
    corners = box_cxcywh_to_xyxy(shift_corners(boxes, torch.tensor(1.0), 1.0))
    assert corners.min() >= -1e-6
    assert corners.max() <= 1 + 1e-6


def test_labels_flip_with_the_given_probability_to_any_class():
    torch.manual_seed(0)
    labels = torch.full((20000,), 2)
    flipped = flip_labels(labels, 0.4, 5)
    assert flipped.min() == 0
    assert flipped.max() == 4
    assert 0.30 < (flipped != 2).float().mean() < 0.34  # one in five draws the same class again
    assert torch.equal(flip_labels(labels, 0.0, 5), labels)


def test_half_of_the_label_noise_ratio_of_positives_and_negatives_is_redrawn():
    torch.manual_seed(0)
    truth = [{"labels": torch.full((500,), 2), "boxes": torch.full((500, 4), 0.5)}]
    numbered = nn.Embedding.from_pretrained(torch.arange(5.0)[:, None])
    queries = contrastive_queries(
        truth, numbered, dn_number=5000, label_noise_ratio=0.8, box_noise_scale=1.0
    )
    labels = queries.content_BDC.view(10, 2, 500)
    changed = (labels != 2).float().mean(dim=(0, 2))
    assert ((changed - 0.4 * 4 / 5).abs() < 0.02).all()  # one in five draws the same class again
    assert not torch.equal(labels[0], labels[1])


@pytest.mark.parametrize("matching", [0, 1, 5])
def test_attention_mask_follows_the_rule_pair_by_pair(matching):
    queries = contrastive_queries(targets(2, 1), embedding(), dn_number=6, **NO_NOISE)
    blocked = queries.attention_mask(matching)
    total = queries.num_queries + matching
    assert blocked.shape == (total, total)
    for row in range(total):
        for column in range(total):
            hidden = column < queries.num_queries and (
                row >= queries.num_queries
                or row // queries.group_size != column // queries.group_size
            )
            assert bool(blocked[row, column]) == hidden


def test_denoising_does_not_change_the_matching_queries():
    model = build("dino").train()
    batch = [record(64, 96, [[5, 5, 60, 50], [20, 10, 40, 30]]), record(64, 96, [[8, 8, 30, 30]])]
    with torch.no_grad():
        with_denoising = model(batch)
        model.dn_number = 0
        without = model(batch)
    for name, value in without.items():
        if "_dn" not in name:
            torch.testing.assert_close(with_denoising[name], value, rtol=1e-4, atol=1e-5)
    assert any(float(v) > 0 for k, v in with_denoising.items() if "_dn" in k)


def test_gradients_reach_the_label_embedding():
    labels = embedding()
    queries = contrastive_queries(targets(2, 0), labels, dn_number=4, **NO_NOISE)
    queries.content_BDC.sum().backward()
    assert labels.weight.grad.abs().sum() > 0


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 20), st.booleans())
def test_each_positive_restores_its_own_box_and_negatives_restore_none(counts, number, pairs):
    truth, labels = targets(*counts), embedding()
    if pairs:
        queries = contrastive_queries(truth, labels, dn_number=number, **NO_NOISE)
    else:
        queries = noised_queries(
            truth,
            labels,
            num_classes=7,
            denoising_groups=number,
            label_noise_prob=0.0,
            box_noise_scale=0.0,
            with_indicator=False,
        )
    if queries is None:
        assert max(counts) == 0
        return
    matches = positive_matches(truth, queries.num_groups, queries.group_size)
    for image, (target, (places, boxes)) in enumerate(zip(truth, matches, strict=True)):
        assert (
            len(places) == len(set(places.tolist())) == queries.num_groups * len(target["labels"])
        )
        # without noise the query at a place is the box that it has to restore
        torch.testing.assert_close(queries.reference_BD4[image][places], target["boxes"][boxes])
        torch.testing.assert_close(
            queries.content_BDC[image][places], labels(target["labels"])[boxes]
        )
        in_group = places % queries.group_size
        assert (in_group < max(counts)).all()  # DINO's negatives are a group's second half
        for box in range(len(target["labels"])):  # once per group
            groups = places[boxes == box] // queries.group_size
            assert groups.tolist() == list(range(queries.num_groups))
