"""Boxes, masks and denoising queries."""

import pytest
import torch
from detrex.layers import (
    GenerateDNQueries,
    apply_box_noise,
    apply_label_noise,
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    generalized_box_iou,
    masks_to_boxes,
)
from detrex.modeling.losses import GIoULoss
from detrex.utils import interpolate, inverse_sigmoid


def random_boxes(count):
    return box_cxcywh_to_xyxy(torch.rand(count, 4, dtype=torch.float64))


def naive_giou(a, b):
    """Return the generalized IoU of two boxes in Python numbers."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / (union + 1e-6) - (hull - union) / (hull + 1e-6)


def test_formats_invert_each_other():
    boxes = random_boxes(20)
    torch.testing.assert_close(box_cxcywh_to_xyxy(box_xyxy_to_cxcywh(boxes)), boxes)
    box = box_xyxy_to_cxcywh(torch.tensor([[1.0, 2.0, 5.0, 10.0]]))
    assert box.tolist() == [[3.0, 6.0, 4.0, 8.0]]


def test_giou_equals_the_naive_one():
    first, second = random_boxes(9), random_boxes(7)
    expected = torch.tensor(
        [[naive_giou(a, b) for b in second.tolist()] for a in first.tolist()],
        dtype=torch.float64,
    )
    torch.testing.assert_close(generalized_box_iou(first, second), expected)
    loss = GIoULoss(reduction="none")(first[:7], second)
    torch.testing.assert_close(loss, 1 - expected[:7].diagonal())


def test_iou_and_union_of_known_boxes():
    iou, union = box_iou(
        torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3], [5, 5, 6, 6]])
    )
    assert union.tolist() == [[7.0, 5.0]]
    torch.testing.assert_close(iou, torch.tensor([[1 / 7, 0.0]]))


def test_boxes_without_area_give_finite_overlap():
    point = torch.zeros(1, 4)
    assert torch.isfinite(generalized_box_iou(point, point)).all()
    assert generalized_box_iou(point, torch.zeros(0, 4)).shape == (1, 0)


@pytest.mark.parametrize("bad", [[0.5, 0.5, 0.4, 0.9], [float("nan"), 0, 1, 1]])
def test_giou_names_the_bad_box(bad):
    good = torch.tensor([[0.0, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"1 of 2 boxes in boxes2 .* the first is boxes2\[1\]"):
        generalized_box_iou(good, torch.cat([good, torch.tensor([bad])]))


def test_masks_to_boxes_on_known_masks():
    masks = torch.zeros(3, 6, 8, dtype=torch.uint8)
    masks[0, 2:5, 3:7] = 1
    masks[1, 0, 0] = 1
    expected = [[3.0, 2.0, 6.0, 4.0], [0.0] * 4, [0.0] * 4]
    assert masks_to_boxes(masks).tolist() == expected
    assert masks_to_boxes(masks[:0]).shape == (0, 4)


def test_label_noise_redraws_the_given_share_and_leaves_the_input_alone():
    labels = torch.full((20000,), 3)
    noised = apply_label_noise(labels, 0.5, num_classes=10)
    assert (labels == 3).all()
    # a redrawn label hits its old value once in ten
    assert abs((noised != 3).float().mean() - 0.45) < 0.02
    assert noised.min() == 0 and noised.max() == 9
    assert torch.equal(apply_label_noise(labels, 0.0), labels)


def test_box_noise_stays_within_its_reach():
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4]]).repeat(5000, 1)
    noised = apply_box_noise(boxes, 0.4)
    shift = (noised - boxes).abs().amax(0)
    limit = torch.tensor([0.1, 0.2, 0.2, 0.4]) * 0.4
    assert (shift <= limit + 1e-6).all() and (shift > 0.95 * limit).all()
    assert (boxes == boxes[0]).all()
    assert torch.equal(apply_box_noise(boxes, 0.0), boxes)


@pytest.mark.parametrize("with_indicator", [True, False])
def test_denoising_queries_hold_the_ground_truth_group_by_group(with_indicator):
    generator = GenerateDNQueries(
        num_queries=4,
        num_classes=6,
        label_embed_dim=8,
        denoising_groups=2,
        label_noise_prob=0.0,
        box_noise_scale=0.0,
        with_indicator=with_indicator,
    )
    labels = [torch.tensor([1, 5]), torch.tensor([2, 3, 0]), torch.tensor([], dtype=torch.long)]
    boxes = [torch.rand(len(image), 4) * 0.8 + 0.1 for image in labels]
    queries, box_logits, mask, groups, largest = generator(labels, boxes)
    assert (groups, largest) == (2, 3)
    assert queries.shape == (3, 6, 8) and box_logits.shape == (3, 6, 4) and mask.shape == (10, 10)
    embedding = generator.label_encoder.weight
    for image, (image_labels, image_boxes) in enumerate(zip(labels, boxes, strict=True)):
        for group in range(2):
            for slot in range(3):
                query = queries[image, group * 3 + slot]
                if slot >= len(image_labels):
                    assert not query.any() and not box_logits[image, group * 3 + slot].any()
                    continue
                torch.testing.assert_close(
                    query[: embedding.shape[1]], embedding[image_labels[slot]]
                )
                assert not with_indicator or query[-1] == 1
                torch.testing.assert_close(
                    box_logits[image, group * 3 + slot].sigmoid(), image_boxes[slot]
                )
    queries.sum().backward()
    assert embedding.grad is not None


def test_denoising_mask_separates_groups_and_ordinary_queries():
    mask = GenerateDNQueries(num_queries=2, denoising_groups=2).generate_query_masks(2, "cpu")
    visible = [
        [1, 1, 0, 0, 1, 1],
        [1, 1, 0, 0, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]
    assert torch.equal(~mask, torch.tensor(visible, dtype=torch.bool))


def test_denoising_without_any_box():
    none = [torch.zeros(0, dtype=torch.long)] * 2, [torch.zeros(0, 4)] * 2
    queries, boxes, mask, _, largest = GenerateDNQueries(num_queries=3)(*none)
    assert largest == 0 and queries.shape == (2, 0, 256) and boxes.shape == (2, 0, 4)
    assert not mask.any() and mask.shape == (3, 3)
    with pytest.raises(ValueError, match="labels per image"):
        GenerateDNQueries()([torch.tensor([1])], [torch.zeros(2, 4)])


def test_inverse_sigmoid_inverts_and_stays_finite():
    probability = torch.linspace(0.01, 0.99, 50)
    torch.testing.assert_close(inverse_sigmoid(probability).sigmoid(), probability)
    ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    limit = torch.log(torch.tensor(1000.0))
    torch.testing.assert_close(ends, torch.stack([-limit, -limit, limit, limit]))


def test_interpolate_resizes():
    assert interpolate(torch.zeros(1, 2, 4, 4), size=[2, 3]).shape == (1, 2, 2, 3)
