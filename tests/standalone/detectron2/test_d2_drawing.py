"""Drawings of predictions, ground truth and shapes."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from detectron2.utils.visualizer import ColorMode, Visualizer


@pytest.fixture
def scene():
    image = np.full((60, 80, 3), 100, dtype=np.uint8)
    image[..., 0] = 160
    masks = np.zeros((2, 60, 80), dtype=bool)
    masks[0, 10:30, 10:40] = True
    masks[0, 15:20, 15:20] = False
    masks[1, 35:55, 50:75] = True
    instances = Instances((60, 80))
    instances.pred_boxes = Boxes([[10, 10, 40, 30], [50, 35, 75, 55]])
    instances.scores = torch.tensor([0.9, 0.4])
    instances.pred_classes = torch.tensor([0, 1])
    instances.pred_masks = torch.from_numpy(masks)
    metadata = {"thing_classes": ["cat", "dog"], "thing_colors": [[255, 0, 0], [0, 255, 0]]}
    return image, masks, instances, metadata


def changed(before, after):
    return (before.astype(int) != after.astype(int)).any(axis=2)


@pytest.mark.parametrize("mode", list(ColorMode))
def test_predictions_are_drawn_where_they_are(scene, mode):
    image, masks, instances, metadata = scene
    visualizer = Visualizer(image, metadata, instance_mode=mode)
    labels = []
    visualizer.draw_text = lambda text, *args, **kwargs: labels.append(text)
    picture = visualizer.draw_instance_predictions(instances).get_image()
    assert picture.shape == image.shape and picture.dtype == np.uint8
    assert sorted(labels) == ["cat 90%", "dog 40%"]
    touched = changed(image, picture)
    inner = masks[1].copy()
    inner[[35, 36, 37, 52, 53, 54]] = False
    inner[:, [50, 51, 52, 72, 73, 74]] = False
    assert touched[inner].all()
    if mode == ColorMode.SEGMENTATION:
        assert picture[45, 62, 1] > 180 and picture[45, 62, 0] < 120
    if mode == ColorMode.IMAGE_BW:
        gray = picture[2, 2].astype(int)
        assert gray.max() - gray.min() <= 1
    else:
        assert not touched[:5].any() and not touched[16:19, 16:19].any()


def test_ground_truth_and_shapes_are_drawn(scene, tmp_path):
    image, masks, _, metadata = scene
    record = {
        "annotations": [
            {
                "bbox": [20, 20, 30, 20],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 1,
                "iscrowd": 1,
                "segmentation": [[20, 20, 50, 20, 50, 40, 20, 40]],
            }
        ]
    }
    visualizer = Visualizer(image, metadata, scale=2.0)
    picture = visualizer.draw_dataset_dict(record).get_image()
    assert picture.shape == (120, 160, 3)
    touched = changed(image.repeat(2, 0).repeat(2, 1), picture)
    assert touched[60:76, 60:90].all() and not touched[:20].any()
    visualizer.get_output().save(str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").stat().st_size > 500

    plain = Visualizer(image, metadata)
    plain.draw_line([0, 79], [50, 50], color="b")
    plain.draw_circle((70, 10), color="r", radius=4)
    plain.draw_binary_mask(masks[0], color="g", area_threshold=10_000)
    plain.draw_soft_mask(masks[1] * 0.7, color=(0.0, 1.0, 0.0))
    touched = changed(image, plain.get_output().get_image())
    assert touched[50, 5:75].all() and touched[10, 70] and touched[45, 60]
    assert not touched[12:28, 12:26].any(), "a mask below the area threshold is not drawn"


def test_overlay_takes_every_kind_of_mask(scene):
    image, masks, _, metadata = scene
    import pycocotools.mask as mask_util

    kinds = [
        BitMasks(torch.from_numpy(masks[1:])),
        masks[1:],
        [mask_util.encode(np.asfortranarray(masks[1].astype(np.uint8)))],
        [[[50, 35, 75, 35, 75, 55, 50, 55]]],
    ]
    pictures = [
        Visualizer(image, metadata).overlay_instances(masks=m, assigned_colors=["b"]).get_image()
        for m in kinds
    ]
    for picture in pictures:
        assert changed(image, picture)[38:52, 53:72].all()
        assert (picture == pictures[0])[38:52, 53:72].all()
        assert not changed(image, picture)[:32].any()
    with pytest.raises(AssertionError, match="different length"):
        Visualizer(image, metadata).overlay_instances(boxes=np.zeros((2, 4)), labels=["a"])
