"""DN-DETR's denoising: groups, noise ranges, indicator, hidden ground truth, no boxes."""

import pytest
import torch
from torch import nn

from tests.small_detectors import build, record
from tokendetr.detector import noised_queries
from tokendetr.detector.denoising import shift_and_scale

CLASSES = 7
TRUTH = [
    {
        "labels": torch.tensor([3, 0, 6]),
        "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.1], [0.4, 0.6, 0.1, 0.3], [0.3, 0.3, 0.2, 0.2]]),
    },
    {"labels": torch.tensor([5]), "boxes": torch.tensor([[0.6, 0.4, 0.1, 0.1]])},
    {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
]


def noised(targets=TRUTH, **options):
    torch.manual_seed(1)
    settings = {
        "num_classes": CLASSES,
        "denoising_groups": 4,
        "label_noise_prob": 0.0,
        "box_noise_scale": 0.0,
        "with_indicator": True,
    }
    return noised_queries(targets, nn.Embedding(CLASSES + 1, 5), **{**settings, **options})


def test_without_noise_every_group_holds_every_box_once():
    queries = noised()
    assert (queries.num_groups, queries.group_size, queries.num_queries) == (4, 3, 12)
    table = nn.Embedding(CLASSES + 1, 5)
    torch.manual_seed(1)
    nn.init.normal_(table.weight)
    for image, target in enumerate(TRUTH):
        count = len(target["labels"])
        content = queries.content_BDC[image].view(4, 3, 6)
        boxes = queries.reference_BD4[image].view(4, 3, 4)
        for group in range(4):
            torch.testing.assert_close(content[group, :count, :5], table(target["labels"]))
            assert (content[group, :count, 5] == 1).all()  # the indicator
            torch.testing.assert_close(boxes[group, :count], target["boxes"])
            assert (content[group, count:] == 0).all()
            assert (boxes[group, count:] == 0.5).all()


def test_without_indicator_content_is_the_label_alone():
    assert noised(with_indicator=False).content_BDC.shape[-1] == 5


def test_no_groups_or_no_boxes_give_no_queries():
    assert noised(denoising_groups=0) is None
    assert noised(TRUTH[2:]) is None


def test_boxes_move_and_scale_within_the_papers_ranges():
    torch.manual_seed(0)
    box = torch.tensor([0.5, 0.5, 0.2, 0.1])
    moved = shift_and_scale(box.expand(4000, 4), 0.4)
    shift = (moved - box)[:, :2] / (box[2:] / 2)
    stretch = moved[:, 2:] / box[2:]
    assert shift.abs().max() <= 0.4 + 1e-5
    assert shift.abs().max() > 0.39
    assert (stretch.min(), stretch.max()) >= (0.6 - 1e-5, 1.39)
    assert stretch.max() <= 1.4 + 1e-5
    assert abs(float(shift.mean())) < 0.02
    assert abs(float(stretch.mean()) - 1) < 0.02


def test_boxes_at_the_border_stay_in_the_unit_square():
    moved = shift_and_scale(torch.tensor([[0.98, 0.01, 0.9, 0.9]]).expand(500, 4), 1.0)
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_noised_labels_are_real_classes_and_groups_differ():
    many = [{"labels": torch.full((500,), 2), "boxes": torch.full((500, 4), 0.5)}]
    table = nn.Embedding.from_pretrained(torch.arange(CLASSES + 1.0)[:, None])
    torch.manual_seed(0)
    queries = noised_queries(
        many,
        table,
        num_classes=CLASSES,
        denoising_groups=4,
        label_noise_prob=0.5,
        box_noise_scale=0.4,
        with_indicator=False,
    )
    labels = queries.content_BDC.view(4, 500)
    assert labels.max() == CLASSES - 1  # never the extra row of the table
    assert labels.min() == 0
    kept = 0.5 + 0.5 / CLASSES
    assert abs(float((labels == 2).float().mean()) - kept) < 0.04
    assert not torch.equal(labels[0], labels[1])
    boxes = queries.reference_BD4.view(4, 500, 4)
    assert not torch.equal(boxes[0], boxes[1])


def test_attention_mask_follows_the_rule_pair_by_pair():
    queries = noised()
    blocked = queries.attention_mask(5)
    for row in range(17):
        for column in range(17):
            other_group = row >= 12 or row // 3 != column // 3
            assert bool(blocked[row, column]) == (column < 12 and other_group)


@pytest.mark.parametrize("name", ["dn", "dn_two_stage"])
def test_denoising_does_not_change_the_matching_queries(name):
    model = build(name).train()
    batch = [record(64, 96, [[5, 5, 60, 50], [20, 10, 40, 30]]), record(64, 96, [[8, 8, 30, 30]])]
    with torch.no_grad():
        with_denoising = model(batch)
        model.denoising_groups = 0
        without = model(batch)
    assert set(with_denoising) == set(without)
    for key, value in without.items():
        if "_dn" not in key:
            torch.testing.assert_close(with_denoising[key], value, rtol=1e-4, atol=1e-5)
        else:
            assert value == 0
            assert with_denoising[key] > 0
