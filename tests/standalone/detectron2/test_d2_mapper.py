"""Reading images, training targets and the default mapper."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import (
    DatasetMapper,
)
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from PIL import Image

from tests.standalone.detectron2.coco_files import annotation, box_polygon, write_coco


@pytest.fixture
def image_file(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return str(path), pixels


def test_read_image_formats(image_file):
    path, pixels = image_file
    np.testing.assert_array_equal(utils.read_image(path, "RGB"), pixels)
    np.testing.assert_array_equal(utils.read_image(path, "BGR"), pixels[:, :, ::-1])
    np.testing.assert_array_equal(utils.read_image(path), pixels)
    assert utils.read_image(path, "L").shape == (20, 30, 1)
    for format in ("RGB", "BGR", "YUV-BT.601"):
        rgb = utils.convert_image_to_rgb(utils.read_image(path, format), format)
        assert rgb.dtype == np.uint8
        assert np.abs(rgb.astype(int) - pixels).max() <= (1 if format[0] == "Y" else 0)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_unusual_pixel_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I;16") else "x.png")
    source = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    if mode == "I;16":
        Image.fromarray(source[:, :, 0].astype(np.uint16)).save(path)
    else:
        Image.fromarray(source).convert(mode).save(path)
    image = utils.read_image(str(path), "RGB")
    assert image.shape == (20, 30, 3) and image.dtype == np.uint8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """Pixels stored as each of the eight orientations prescribes come out upright."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255
    # Pixels as a camera stores them for each orientation, by EXIF's definition of the first row.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    np.testing.assert_array_equal(utils.read_image(str(path), "RGB"), upright)


def test_unreadable_images_are_named(tmp_path, image_file):
    path, _ = image_file
    with pytest.raises(FileNotFoundError, match="gone"):
        utils.read_image(str(tmp_path / "gone.png"))
    for content in (b"", b"not an image", Path(path).read_bytes()[:400]):
        broken = tmp_path / "broken.png"
        broken.write_bytes(content)
        with pytest.raises(OSError, match="broken.png"):
            utils.read_image(str(broken), "RGB")


def test_size_mismatch_is_named(image_file):
    path, pixels = image_file
    record = {"file_name": path, "width": 31, "height": 20}
    with pytest.raises(utils.SizeMismatchError, match=r"image.png.*\(30, 20\).*\(31, 20\)"):
        utils.check_image_size(record, pixels)
    empty: dict = {}
    utils.check_image_size(empty, pixels)
    assert empty == {"width": 30, "height": 20}


def test_annotations_become_instances_with_clipped_boxes():
    size = (20, 30)
    annos = [
        {"bbox": [25, 5, 10, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2},
        {"bbox": [-5, -5, 4, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1},
    ]
    for a in annos:
        utils.transform_instance_annotations(a, T.NoOpTransform(), size)
    instances = utils.annotations_to_instances(annos, size)
    assert instances.gt_boxes.tensor.tolist() == [[25, 5, 30, 15], [0, 0, 0, 0]]
    kept, mask = utils.filter_empty_instances(instances, return_mask=True)
    assert mask.tolist() == [True, False] and kept.gt_classes.tolist() == [2]
    none = utils.annotations_to_instances([], size)
    assert none.gt_boxes.tensor.shape == (0, 4) and none.gt_classes.dtype == torch.int64


def test_polygon_and_bitmask_targets_agree():
    size = (20, 30)

    def target(mask_format: str):
        anno = {
            "bbox": [4, 5, 10, 8],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "segmentation": [box_polygon(4, 5, 10, 8)],
        }
        utils.transform_instance_annotations(anno, [T.HFlipTransform(30)], size)
        return utils.annotations_to_instances([anno], size, mask_format).gt_masks

    bits = target("bitmask").tensor[0]
    assert bits.sum() == 80 and bits[5:13, 16:26].all()
    box = target("polygon").get_bounding_boxes().tensor[0].tolist()
    assert box == [16, 5, 26, 13]


def test_keypoints_flip_with_the_image():
    keypoints = [5.0, 6.0, 2, 25.0, 8.0, 1, 40.0, 8.0, 2]
    moved = utils.transform_keypoint_annotations(
        keypoints, T.TransformList([T.HFlipTransform(30)]), (20, 30), np.array([1, 0, 2])
    )
    # The third point lies outside the image and becomes unlabeled.
    np.testing.assert_allclose(moved, [[5, 8, 1], [25, 6, 2], [0, 0, 0]])
    with pytest.raises(ValueError, match="flip.indices"):
        utils.transform_keypoint_annotations(keypoints, T.HFlipTransform(30), (20, 30))


def test_mapper_reads_transforms_and_drops_crowds(tmp_path):
    annotations = [
        annotation(1, 1, 3, [10, 10, 20, 30]),
        annotation(2, 1, 7, [0, 0, 40, 40], iscrowd=1),
    ]
    json_file, root = write_coco(tmp_path, sizes=[(50, 60)], annotations=annotations)
    record = load_coco_json(json_file, root)[0]
    before = pickle.dumps(record)
    mapper = DatasetMapper(
        True, augmentations=[T.Resize((100, 120)), T.HFlipTransform(120)], image_format="RGB"
    )
    mapped = mapper(record)
    assert pickle.dumps(record) == before
    assert mapped["image"].shape == (3, 100, 120) and mapped["image"].dtype == torch.uint8
    assert (mapped["height"], mapped["width"]) == (50, 60)
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[60, 20, 100, 80]]
    assert "annotations" not in mapped and not mapped["instances"].has("gt_masks")
    test_mapper = DatasetMapper(False, augmentations=[T.Resize((100, 120))], image_format="BGR")
    tested = test_mapper(record)
    assert "instances" not in tested and "annotations" not in tested


def test_mapper_options_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="instance masks"):
        DatasetMapper(True, augmentations=[], image_format="RGB", recompute_boxes=True)
