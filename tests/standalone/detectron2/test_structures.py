"""Boxes, masks, instances and image batches against direct computations."""

import numpy as np
import pytest
import torch
from detectron2.layers import roi_align
from detectron2.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    PolygonMasks,
    pairwise_ioa,
    pairwise_iou,
)
from detectron2.structures.boxes import pairwise_point_box_distance
from detectron2.utils.visualizer import Visualizer
from torch import Tensor


def random_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 50
    return Boxes(torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 30], 1))


def overlap(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height


def area(a):
    return (a[2] - a[0]) * (a[3] - a[1])


def test_pairwise_overlaps_match_loops():
    first, second = random_boxes(7), random_boxes(5, seed=1)
    iou, ioa = pairwise_iou(first, second), pairwise_ioa(first, second)
    for i, a in enumerate(first.tensor.tolist()):
        for j, b in enumerate(second.tensor.tolist()):
            inter = overlap(a, b)
            assert iou[i, j].item() == pytest.approx(inter / (area(a) + area(b) - inter), abs=1e-5)
            assert ioa[i, j].item() == pytest.approx(inter / area(b), abs=1e-5)
    assert pairwise_iou(Boxes(torch.zeros(0, 4)), second).shape == (0, 5)
    point = Boxes([[1, 1, 1, 1]])
    assert pairwise_iou(point, point).item() == 0


def test_box_operations():
    boxes = Boxes([[-5, 2, 30, 8], [3, 3, 3, 9], [1, 1, 4, 5]])
    boxes.clip((6, 20))
    assert boxes.tensor.tolist() == [[0, 2, 20, 6], [3, 3, 3, 6], [1, 1, 4, 5]]
    assert boxes.nonempty().tolist() == [True, False, True]
    assert boxes.area().tolist() == [80, 0, 12]
    boxes.scale(2, 0.5)
    assert boxes[2].tensor.tolist() == [[2, 0.5, 8, 2.5]]
    assert boxes.get_centers()[0].tolist() == [20, 2]
    assert len(Boxes.cat([boxes, boxes[:1]])) == 4
    assert len(Boxes.cat([])) == 0
    assert Boxes([]).tensor.shape == (0, 4)
    assert boxes.inside_box((3, 20)).tolist() == [False, False, True]
    with pytest.raises(AssertionError, match="infinite or NaN"):
        Boxes([[0, 0, float("nan"), 1]]).clip((5, 5))
    distance = pairwise_point_box_distance(torch.tensor([[2.0, 3.0]]), Boxes([[0, 1, 5, 9]]))
    assert distance.tolist() == [[[2, 2, 3, 6]]]


def test_box_mode_keeps_container_and_values():
    xywh = [10.0, 20.0, 5.0, 6.0]
    to_corners = (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert BoxMode.convert(xywh, *to_corners) == [10, 20, 15, 26]
    assert isinstance(BoxMode.convert(tuple(xywh), *to_corners), tuple)
    array = np.array([xywh])
    assert BoxMode.convert(array, *to_corners).tolist() == [[10, 20, 15, 26]]
    assert array.tolist() == [xywh], "the argument must not change"
    tensor = torch.tensor([xywh])
    back = BoxMode.convert(BoxMode.convert(tensor, *to_corners), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    assert torch.equal(back, tensor)
    with pytest.raises(AssertionError, match="(?i)relative"):
        BoxMode.convert(xywh, BoxMode.XYWH_REL, BoxMode.XYXY_ABS)


@pytest.mark.stand_ins
def test_rotated_boxes_are_refused():
    rotated = [10.0, 10.0, 4.0, 2.0, 90.0]
    with pytest.raises(NotImplementedError, match="not part of this subset"):
        BoxMode.convert(rotated, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
    with pytest.raises(NotImplementedError, match="not part of this subset"):
        Visualizer(np.zeros((20, 20, 3))).overlay_instances(boxes=[rotated])


def test_instances_keep_fields_together():
    instances = Instances((4, 6), pred_boxes=Boxes(torch.rand(3, 4)))
    instances.scores = torch.tensor([0.1, 0.9, 0.5])
    best = instances[instances.scores > 0.3]
    assert len(best) == 2 and best.scores.tolist() == pytest.approx([0.9, 0.5])
    instances.tags = ["a", "b", "c"]
    assert instances[-1].tags == ["c"] and instances[1:].tags == ["b", "c"]
    with pytest.raises(AssertionError, match="length 2"):
        instances.other = torch.zeros(2)
    with pytest.raises(AttributeError, match="Cannot find field 'gone'"):
        _ = instances.gone
    with pytest.raises(IndexError):
        _ = instances[3]
    joined = Instances.cat([instances, instances[:1]])
    assert len(joined) == 4 and joined.tags[-1] == "a" and len(joined.pred_boxes) == 4
    instances.remove("tags")
    assert not instances.has("tags")
    assert "num_instances=3" in str(instances)
    assert len(Instances((1, 1), boxes=Boxes([]))) == 0


def test_image_list_pads_and_gives_back():
    images = [torch.rand(3, 20, 33), torch.rand(3, 31, 10)]
    batch = ImageList.from_tensors(images, size_divisibility=16, pad_value=7.0)
    assert batch.tensor.shape == (2, 3, 32, 48)
    assert batch.image_sizes == [(20, 33), (31, 10)]
    for index, image in enumerate(images):
        assert torch.equal(batch[index], image)
    inside = torch.zeros(2, 32, 48, dtype=torch.bool)
    inside[0, :20, :33] = inside[1, :31, :10] = True
    assert (batch.tensor.permute(0, 2, 3, 1)[~inside] == 7).all()
    square = ImageList.from_tensors(images[:1], padding_constraints={"square_size": 40})
    assert square.tensor.shape == (1, 3, 40, 40)
    assert ImageList.from_tensors([torch.rand(5, 6)]).tensor.shape == (1, 5, 6)
    with pytest.raises(ValueError, match="square_size 8"):
        ImageList.from_tensors(images, padding_constraints={"square_size": 8})


def used_boxes(corners: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    boxes = Boxes(corners)
    boxes.clip((20, 30))
    boxes.scale(2.0, 0.5)
    both = boxes.cat([boxes, boxes.to(torch.device("cpu")).clone()])
    kept = both[both.nonempty(1.0)]
    return kept.tensor, kept.area(), pairwise_iou(boxes, both), len(kept)


def padded_images(images: list[Tensor]) -> tuple[Tensor, int]:
    batch = ImageList.from_tensors(images, 8, padding_constraints={"square_size": 12})
    return batch.tensor, len(batch)


def test_torch_script_compiles_boxes_and_image_lists():
    corners = torch.tensor([[1.0, 2.0, 40.0, 9.0], [3.0, 3.0, 3.0, 8.0], [0.0, 0.0, 7.0, 30.0]])
    images = [torch.rand(3, 10, 7), torch.rand(3, 5, 12)]
    for function, argument in ((used_boxes, corners), (padded_images, images)):
        compiled = torch.jit.script(function)
        torch.testing.assert_close(compiled(argument), function(argument), rtol=0, atol=0)


def test_masks_agree_between_representations():
    polygons = PolygonMasks([[[2, 1, 8, 1, 8, 5, 2, 5]], [[0, 0, 4, 0, 4, 4, 0, 4]]])
    bitmaps = BitMasks.from_polygon_masks(polygons, 10, 12)
    assert bitmaps.tensor.sum(dim=(1, 2)).tolist() == polygons.area().tolist() == [24, 16]
    boxes = bitmaps.get_bounding_boxes().tensor
    assert torch.equal(boxes, polygons.get_bounding_boxes().tensor)
    crops = bitmaps.crop_and_resize(boxes, 7), polygons.crop_and_resize(boxes, 7)
    assert crops[0].all() and crops[1].float().mean() > 0.9
    wide = torch.tensor([[0.0, 0.0, 12.0, 10.0]]).repeat(2, 1)
    share = bitmaps.crop_and_resize(wide, 24).float().mean(dim=(1, 2))
    assert share.tolist() == pytest.approx([24 / 120, 16 / 120], abs=0.03)
    assert BitMasks.cat([bitmaps, bitmaps[0]]).tensor.shape == (3, 10, 12)
    assert polygons[torch.tensor([False, True])].area().tolist() == [16]
    empty = BitMasks(torch.zeros(1, 3, 3))
    assert not empty.nonempty().item() and empty.get_bounding_boxes().tensor.sum() == 0
    with pytest.raises(ValueError, match="4 coordinates"):
        PolygonMasks([[[0, 0, 1, 1]]])


def test_roi_align_matches_sampling_by_hand():
    features = torch.rand(2, 3, 9, 11, dtype=torch.float32)
    boxes = torch.tensor([[1, 1.3, 2.2, 7.9, 6.4], [0, -1.0, 0.5, 4.0, 8.7]])
    pooled = roi_align(features, boxes, (3, 2), sampling_ratio=2, aligned=True)

    def sample(image, y, x):
        if y < -1 or y > 9 or x < -1 or x > 11:
            return torch.zeros(3)
        y, x = min(max(y, 0.0), 8.0), min(max(x, 0.0), 10.0)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, 8), min(left + 1, 10)
        dy, dx = y - top, x - left
        upper = image[:, top, left] * (1 - dx) + image[:, top, right] * dx
        lower = image[:, bottom, left] * (1 - dx) + image[:, bottom, right] * dx
        return upper * (1 - dy) + lower * dy

    for n, (index, x0, y0, x1, y1) in enumerate(boxes.tolist()):
        for p in range(3):
            for q in range(2):
                points = [
                    sample(
                        features[int(index)],
                        y0 - 0.5 + (p + (i + 0.5) / 2) * (y1 - y0) / 3,
                        x0 - 0.5 + (q + (j + 0.5) / 2) * (x1 - x0) / 2,
                    )
                    for i in range(2)
                    for j in range(2)
                ]
                assert torch.allclose(pooled[n, :, p, q], torch.stack(points).mean(0), atol=1e-5)
