"""Faults of a data set are named by file and record before training starts."""

import copy
import json
import os
import socket

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import OmegaConf
from PIL import Image

from tests.train import toy
from tokendetr.data.validate import validate_coco, validate_config_data
from tokendetr.errors import DatasetError, SampleError


@pytest.fixture
def dataset(tmp_path):
    toy.write_dataset(tmp_path)
    return tmp_path


def check(root, change=None, **options):
    """Validate the data set after ``change(data)`` was applied to its JSON."""
    path = root / "annotations.json"
    data = json.loads(path.read_text())
    if change is not None:
        change(data)
        path.write_text(json.dumps(data))
    validate_coco(str(path), str(root / "images"), name="fruit", **options)


def test_good_data_passes(dataset):
    check(dataset, for_evaluation=True, num_classes=3)


def annotation(key, value):
    def change(data):
        data["annotations"][1][key] = value

    return change


def image(key, value):
    def change(data):
        data["images"][2][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (image("file_name", "gone.png"), ["image id 3", "gone.png", "does not exist"]),
        (image("file_name", "002.PNG"), ["002.PNG does not exist (but '002.png'"]),
        (image("file_name", "002.jpeg"), ["002.jpeg does not exist (but '002.png'"]),
        (annotation("category_id", 77), ["annotation id 2", "category_id 77", ".png"]),
        (annotation("image_id", 99), ["annotation id 2", "image_id 99"]),
        (annotation("bbox", [1, 2, -3, 4]), ["annotation id 2", "[1, 2, -3, 4]", "inverted"]),
        (annotation("bbox", [1, 2, 300, 4]), ["annotation id 2", "outside", "pixels"]),
        (annotation("bbox", [-50, 2, 3, 4]), ["annotation id 2", "outside"]),
        (annotation("bbox", [1, float("nan"), 3, 4]), ["annotation id 2", "not finite"]),
        (annotation("bbox", [1, 2, float("inf"), 4]), ["annotation id 2", "not finite"]),
        (annotation("bbox", [1, 2, 3]), ["annotation id 2", "four numbers"]),
        (annotation("bbox", "1 2 3 4"), ["annotation id 2", "four numbers"]),
        (annotation("bbox", None), ["annotation id 2", "four numbers"]),
        (annotation("ignore", 1), ["annotation id 2", "iscrowd"]),
        (annotation("id", 1), ["annotation id 1 is used more than once"]),
        (annotation("id", None), ["annotation number 1 has no id"]),
        (image("id", 1), ["image id 1 is used more than once"]),
        (image("width", 0), ["image id 3", "width is 0"]),
        (image("height", "tall"), ["image id 3", "height is 'tall'"]),
        (image("file_name", None), ["image id 3", "no file_name"]),
        (lambda d: d["categories"].append({"id": 1, "name": "x"}), ["category id 1 is used more"]),
        (lambda d: d["images"].append(5), ["image number 10 has no id"]),
        (
            lambda d: [a.update(bbox=[v / 40 for v in a["bbox"]]) for a in d["annotations"]],
            ["1 fault", "every box lies within the first pixel"],
        ),
    ],
)
def test_faults_are_named(dataset, change, parts):
    with pytest.raises(DatasetError) as caught:
        check(dataset, change)
    message = str(caught.value)
    for part in ["'fruit'", "annotations.json", *parts]:
        assert part in message, message


def test_boxes_that_loaders_cope_with(dataset, caplog):
    check(dataset, annotation("bbox", [5, 5, 0, 7]))
    assert "1 boxes have no area" in caplog.text
    width = json.loads((dataset / "annotations.json").read_text())["images"][0]["width"]
    check(dataset, annotation("bbox", [width - 5, 5, 5.9, 7]))


def test_annotation_id_zero_is_refused(dataset):
    check(dataset, annotation("id", 0))
    with pytest.raises(DatasetError, match="annotation id 0"):
        check(dataset, for_evaluation=True)


def test_more_categories_than_classes_are_refused(dataset):
    with pytest.raises(DatasetError, match=r"3 categories.*model\.num_classes=3"):
        check(dataset, num_classes=2)


def test_many_faults_are_counted(dataset):
    def change(data):
        for a in data["annotations"]:
            a["category_id"] = 50
        data["annotations"] *= 3

    with pytest.raises(DatasetError, match=r"and \d+ more"):
        check(dataset, change)


# ------------------------------------------------------------------------------ paths


def outside(root):
    path = root / "outside.png"
    Image.fromarray(np.zeros((40, 28, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "../outside.png",
        "sub/../../outside.png",
        "/etc/hostname",
        "..",
        "..\\outside.png",
        "a/../../outside.png",
    ],
)
def test_names_that_leave_the_folder(dataset, name):
    outside(dataset)
    with pytest.raises(DatasetError, match="leaves the image folder"):
        check(dataset, image("file_name", name))


def test_absolute_name_inside_the_root_is_refused(dataset):
    with pytest.raises(DatasetError, match="leaves the image folder"):
        check(dataset, image("file_name", str(dataset / "images" / "000.png")))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_symbolic_links_that_leave_the_folder(dataset, kind):
    outside(dataset)
    if kind == "file":
        os.symlink(dataset / "outside.png", dataset / "images" / "link.png")
        name = "link.png"
    else:
        os.symlink(dataset, dataset / "images" / "link")
        name = "link/outside.png"
    with pytest.raises(DatasetError, match="symbolic link"):
        check(dataset, image("file_name", name))


def test_links_inside_the_root_and_linked_roots_are_fine(dataset, tmp_path):
    os.symlink(dataset / "images" / "000.png", dataset / "images" / "again.png")
    check(dataset, image("file_name", "again.png"))
    os.symlink(dataset / "images", dataset / "linked")
    validate_coco(str(dataset / "annotations.json"), str(dataset / "linked"))


def test_devices_are_no_images(dataset):
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(dataset / "images" / "s.png"))
    os.mkdir(dataset / "images" / "folder.png")
    os.symlink("/dev/zero", dataset / "images" / "zero.png")
    for name in ("s.png", "folder.png", "zero.png"):
        with pytest.raises(DatasetError):
            check(dataset, image("file_name", name))
    server.close()


# ------------------------------------------------------------------------------ files


def test_missing_annotations_name_the_root(dataset, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data/sets")
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS.*'/data/sets'"):
        validate_coco(str(dataset / "none.json"), str(dataset / "images"), name="coco_2017_train")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    with pytest.raises(FileNotFoundError, match=r"not set, so \./datasets"):
        validate_coco(str(dataset / "none.json"), str(dataset / "images"))


def test_a_missing_image_folder_is_named(dataset):
    with pytest.raises(FileNotFoundError, match=r"image folder '.*gone'"):
        validate_coco(str(dataset / "annotations.json"), str(dataset / "gone"))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"images": [', "not readable JSON"),
        ("[1, 2]", "holds a list"),
        ('{"images": []}', "has no 'categories'"),
        ('{"images": {}, "categories": []}', "'images' is a dict"),
        ("[" * 200000, "not readable JSON"),
        (b"\xff\xfe\x00", "not readable JSON"),
    ],
)
def test_broken_json_is_named(dataset, content, text):
    path = dataset / "broken.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError, match=text):
        validate_coco(str(path), str(dataset / "images"))


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_image_is_named(toy_run, tmp_path, workers):
    root = tmp_path / "data"
    toy.write_dataset(root)
    path = root / "images" / "004.png"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(SampleError, match=r"004\.png \(image id 5\)"):
        toy_run(tmp_path / "out", f"dataloader.train.num_workers={workers}", root=root)


def test_truncated_image_in_evaluation_is_named(toy_run, tmp_path):
    root = tmp_path / "data"
    toy.write_dataset(root, num_images=8)
    path = root / "images" / "007.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:600])
    with pytest.raises(SampleError, match=r"007\.png"):
        toy_run(tmp_path / "out", "train.max_iter=1", "train.eval_period=1", root=root)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_images_of_other_kinds_are_converted(toy_run, tmp_path, mode):
    root = tmp_path / "data"
    toy.write_dataset(root, num_images=4)
    name = "001.tif" if mode == "CMYK" else "001.png"
    rgb = Image.open(root / "images" / "001.png").convert("RGB")
    if mode == "I;16":
        other = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    else:
        other = rgb.convert(mode)
    (root / "images" / "001.png").unlink()
    other.save(root / "images" / name)
    text = (root / "annotations.json").read_text()
    (root / "annotations.json").write_text(text.replace("001.png", name))
    toy_run(tmp_path / "out", "train.max_iter=2", root=root)


# ------------------------------------------------------------------------------ configs


def test_config_names_are_checked(dataset, tmp_path, caplog):
    cfg = toy.make_config(dataset, tmp_path, name="pear_train")
    validate_config_data(cfg)
    good = copy.deepcopy(cfg)
    cfg.dataloader.train.dataset.names = "pear_trian"
    with pytest.raises(DatasetError, match="'pear_trian'.*did you mean pear_train"):
        validate_config_data(cfg)
    validate_config_data(cfg, evaluation_only=True)
    good.model.num_classes = 2
    with pytest.raises(DatasetError, match="num_classes=2"):
        validate_config_data(good)
    good.train.validate_data = "warn"
    validate_config_data(good)
    assert "num_classes=2" in caplog.text
    good.train.validate_data = "off"
    validate_config_data(good)
    good.train.validate_data = "loud"
    with pytest.raises(DatasetError, match="strict, warn or off"):
        validate_config_data(good)


def test_configs_without_named_data_pass(tmp_path):
    validate_config_data(OmegaConf.create({"dataloader": {"train": {}}, "train": {}}))
    DatasetCatalog.register("no_json", list)
    try:
        validate_config_data(
            OmegaConf.create({"dataloader": {"train": {"dataset": {"names": ["no_json"]}}}})
        )
    finally:
        DatasetCatalog.remove("no_json")
        MetadataCatalog.remove("no_json")
