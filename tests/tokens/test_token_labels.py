"""Labels of tokens from boxes, against loops over tokens and boxes."""

import math

import pytest
import torch

from tests.pyramids import make_batch
from tokendetr.tokens import LevelLayout, box_labels, grid_labels, overlapping_size_ranges

STRIDES = (8, 16, 32, 64)
RANGES = ((0, 64), (32, 128), (80, 256), (168, math.inf))


def naive_center(boxes, height, width, stride, low, high, half_size=False):
    labels = torch.zeros(height, width, dtype=torch.bool)
    for i in range(height):
        for j in range(width):
            y, x = stride // 2 + i * stride, stride // 2 + j * stride
            for x1, y1, x2, y2 in boxes.tolist():
                sides = (x - x1, y - y1, x2 - x, y2 - y)
                far = max(x2 - x1, y2 - y1) / 2 if half_size else max(sides)
                if min(sides) > 0 and low < far <= high:
                    labels[i, j] = True
    return labels


def naive_overlap(boxes, height, width, stride):
    labels = torch.zeros(height, width, dtype=torch.bool)
    for i in range(height):
        for j in range(width):
            for x1, y1, x2, y2 in boxes.tolist():
                shared_x = min(x2, (j + 1) * stride) - max(x1, j * stride)
                shared_y = min(y2, (i + 1) * stride) - max(y1, i * stride)
                if shared_x > 0 and shared_y > 0:
                    labels[i, j] = True
    return labels


def random_boxes(count, seed, size=256):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size
    extent = torch.rand(count, 2, generator=generator) ** 2 * size
    boxes = torch.cat([corner, corner + extent], dim=1)
    boxes[::3] = boxes[::3].round()  # sides that fall on cells' borders and centers
    return boxes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("level", range(4))
def test_all_rules_equal_loops(level, seed):
    boxes, stride = random_boxes(5 * seed, seed), STRIDES[level]
    shape = {"height": 200 // stride + 1, "width": 256 // stride, "stride": stride}
    center = grid_labels(boxes, **shape, rule="center", size_range=RANGES[level])
    assert torch.equal(
        center, naive_center(boxes, **shape, low=RANGES[level][0], high=RANGES[level][1])
    )
    low, high = RANGES[level]
    half = grid_labels(boxes, **shape, rule="center_half_size", size_range=RANGES[level])
    assert torch.equal(half, naive_center(boxes, **shape, low=low, high=high, half_size=True))
    assert torch.equal(grid_labels(boxes, **shape, rule="overlap"), naive_overlap(boxes, **shape))


def test_a_center_inside_a_box_implies_overlap_but_not_conversely():
    boxes = torch.tensor([[9.0, 9.0, 11.0, 30.0]])
    shape = {"height": 6, "width": 6, "stride": 8}
    center = grid_labels(boxes, **shape, rule="center")
    overlap = grid_labels(boxes, **shape, rule="overlap")
    assert not center.any() and overlap.sum() == 3 and overlap[1:4, 1].all()


def test_boxes_without_area_and_images_without_boxes_label_nothing():
    for boxes in (torch.zeros(0, 4), torch.tensor([[20.0, 5.0, 20.0, 40.0]])):
        for rule in ("center", "overlap"):
            assert not grid_labels(boxes, height=5, width=5, stride=8, rule=rule).any()


def test_a_padded_batch_labels_each_image_as_alone():
    batch, alone = make_batch([(16, 21), (9, 10), (1, 1)], 4)
    boxes = [random_boxes(6, 1, size=160), random_boxes(6, 2, size=160), torch.zeros(0, 4)]
    for rule, ranges in (("center", RANGES), ("overlap", None)):
        labels = box_labels(boxes, batch.layout, strides=STRIDES, rule=rule, size_ranges=ranges)
        assert not labels[~batch.layout.valid_BN].any()
        for image, single in enumerate(alone):
            expected = box_labels(
                boxes[image : image + 1],
                single.layout,
                strides=STRIDES,
                rule=rule,
                size_ranges=ranges,
            )
            assert torch.equal(labels[image][batch.layout.valid_BN[image]], expected[0])


def test_size_ranges_overlap_by_half():
    assert overlapping_size_ranges((64, 128, 256)) == RANGES
    assert overlapping_size_ranges(()) == ((0, math.inf),)
    for ends in ((64, 64), (128, 64), (0, 64)):
        with pytest.raises(ValueError, match="increase"):
            overlapping_size_ranges(ends)


def test_wrong_arguments_are_named():
    box = torch.zeros(1, 4)
    layout = LevelLayout.from_valid_sizes([(4, 4)], [[(4, 4)]])
    for arguments, name in (
        ({"rule": "area"}, "rule"),
        ({"rule": "center", "stride": 0}, "stride"),
        ({"rule": "center", "boxes_xyxy_px": torch.zeros(4)}, "boxes"),
    ):
        options = {"boxes_xyxy_px": box, "height": 2, "width": 2, "stride": 8, **arguments}
        with pytest.raises(ValueError, match=name):
            grid_labels(**options)
    with pytest.raises(ValueError, match="2 images for 1"):
        box_labels([box, box], layout, strides=(8,), rule="center")
    with pytest.raises(ValueError, match="strides"):
        box_labels([box], layout, strides=(8, 16), rule="center")
