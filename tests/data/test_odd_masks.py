"""Masks as people's tools write them: read, left out with their boxes kept, or refused by name."""

import copy
import json

import pytest
from detectron2.config import LazyConfig

from tests.train import toy
from tokendetr.config.load import fill_defaults
from tokendetr.data.coco_check import validate_coco
from tokendetr.data.validate import validate_config_data
from tokendetr.errors import DatasetError
from tokendetr.io.annotations import normalize

_IMAGE = {"id": 1, "file_name": "a.png", "width": 40, "height": 30}
_BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9]}
_SQUARE = [2, 2, 11, 2, 11, 11, 2, 11]
_COMB = [float(n % 2 * 40) if n % 4 < 2 else float(n % 30) for n in range(20_000)]


def read(segmentation):
    data = {
        "images": [_IMAGE],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{**_BOX, "segmentation": copy.deepcopy(segmentation)}],
    }
    found = normalize(data)
    assert not found.faults
    return found.data["annotations"][0].get("segmentation")


@pytest.mark.parametrize(
    "outline",
    [
        [1e15, 2, 3, 4, 5, 6],
        [1e9, 2, 3, 4, 5, 6],
        [-1e7, -1e7, 1e7, -1e7, 1e7, 1e7],
        [2, 2, 9, 2, 9, 300],
        _COMB,
    ],
    ids=["2^50", "1e9", "around", "far below", "a comb"],
)
def test_outlines_that_would_take_all_memory_are_left_out(outline):
    assert read([outline, _SQUARE]) == [_SQUARE]
    assert read([outline]) is None


def test_outlines_a_little_outside_are_kept():
    for outline in ([-3.5, -2, 45, -2, 45, 33, -3.5, 33], _SQUARE * 50):
        assert read([outline]) == [outline]


def test_run_lengths_from_tables_are_read():
    for counts in ([0, 1200], [0, 0, 0, 1200]):
        found = read({"size": [30.0, 40.0], "counts": counts})
        assert found == {"size": [30, 40], "counts": counts}
        assert all(type(side) is int for side in found["size"])
    assert read({"size": [40, 30], "counts": [0, 1200]}) is None
    assert read({"size": [30, 40], "counts": [0.0, 1200.0]}) is None


def test_a_mapper_of_polygons_is_not_given_run_lengths(tmp_path):
    path = toy.write_dataset(tmp_path, num_images=4)
    data = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    for annotation in data["annotations"]:
        height, width = sizes[annotation["image_id"]]
        annotation["segmentation"] = {"size": [height, width], "counts": [0, height * width]}
    data["annotations"][0]["iscrowd"] = 1  # detectron2's mapper leaves crowds out
    path.write_text(json.dumps(data))
    cfg = toy.make_config(tmp_path, tmp_path / "run")
    fill_defaults(cfg)
    validate_config_data(cfg)
    LazyConfig.apply_overrides(cfg, ["+dataloader.train.mapper.mask_on=True"])
    with pytest.raises(DatasetError, match="annotation id 2 .*run lengths") as caught:
        validate_config_data(cfg)
    assert "annotation id 1 " not in str(caught.value)
    LazyConfig.apply_overrides(cfg, ["+dataloader.train.mapper.instance_mask_format=bitmask"])
    validate_config_data(cfg)
    validate_coco(str(path), str(tmp_path / "images"), needs_masks=True)
