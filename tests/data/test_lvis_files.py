"""LVIS's files: their images, named by URLs, are checked and opened as COCO's are."""

import json

import pytest
from PIL import Image

from tests.train import toy
from tokendetr.cli.check_dataset import Task, check
from tokendetr.data.coco_check import read_coco, validate_coco
from tokendetr.data.validate import CocoFiles
from tokendetr.errors import DatasetError


@pytest.fixture
def lvis(tmp_path):
    """An LVIS file, and its images below a folder of COCO's."""
    toy.write_dataset(tmp_path)
    (tmp_path / "images").rename(tmp_path / "train2017")
    path = tmp_path / "annotations.json"
    data = json.loads(path.read_text())
    for record in data["images"]:
        record["coco_url"] = f"http://images.cocodataset.org/train2017/{record.pop('file_name')}"
        record["neg_category_ids"] = record["not_exhaustive_category_ids"] = []
    for category in data["categories"]:
        category.update(frequency="r", synonyms=[category["name"], "other"])
    path.write_text(json.dumps(data))
    return path


def rewrite(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def validate(path):
    validate_coco(str(path), str(path.parent), for_evaluation=True, has_file_names=False)


def test_images_are_found_by_their_urls(lvis):
    validate(lvis)
    names = {image["file_name"] for image in read_coco(str(lvis), has_file_names=False)["images"]}
    assert "train2017/000.png" in names
    # What reads annotations alone takes them for COCO's, and finds the images too.
    assert {image["file_name"] for image in read_coco(str(lvis))["images"]} == names
    # Early releases have COCO's former names beside the URLs.
    rewrite(lvis, lambda d: [image.update(file_name="COCO_0.jpg") for image in d["images"]])
    validate(lvis)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["images"][0].update(coco_url="http://x/val2017/000.png"), "val2017/000.png"),
        (lambda d: d["images"][0].update(coco_url="http://../000.png"), "leaves the image folder"),
        (lambda d: d["images"][0].update(coco_url="000.png"), "no folder is in its coco_url"),
        (lambda d: d["images"][0].update(coco_url=None), "it has no file_name"),
        (lambda d: d["categories"].append({**d["categories"][0], "id": 9, "name": "z"}), "1 to 4"),
    ],
)
def test_what_the_loader_cannot_read_is_named(lvis, change, words):
    rewrite(lvis, change)
    with pytest.raises(DatasetError, match=words):
        validate(lvis)


def test_images_are_opened_and_drawn(lvis, tmp_path):
    files = CocoFiles(str(lvis), str(lvis.parent), has_file_names=False)
    task = Task("tiny", files, num_classes=toy.NUM_CLASSES, validate=lambda: None)
    assert check(task, open_images=True, pictures=tmp_path / "out") == ""
    assert len(list((tmp_path / "out").glob("tiny/sample_*.jpg"))) == 10
    Image.new("RGB", (9, 9)).save(lvis.parent / "train2017" / "003.png")
    assert "train2017/003.png) has 9 x 9 pixels" in check(task, open_images=True)
