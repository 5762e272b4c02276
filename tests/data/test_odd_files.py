"""Annotations and images as common tools write them are read correctly or refused by name."""

import json
import os
import uuid

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.datasets import load_voc_instances, register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from detrex.data import DetrDatasetMapper
from PIL import Image

from tests.train import toy
from tokendetr.data.coco_check import validate_coco
from tokendetr.data.survey import check_image_files
from tokendetr.data.validate import validate_config_data
from tokendetr.errors import DatasetError
from tokendetr.evaluation.fast_coco import FastCOCOEvaluator


@pytest.fixture
def fruit(tmp_path):
    toy.write_dataset(tmp_path, num_images=4)
    return tmp_path


@pytest.fixture
def load(fruit):
    """Write a changed file, check it and load it; unregister all names at the end."""
    names = []

    def change_and_load(change):
        path = fruit / "annotations.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
        validate_coco(str(path), str(fruit / "images"), for_training=True, for_evaluation=True)
        names.append(f"odd_{uuid.uuid4().hex}")
        register_coco_instances(names[-1], {}, str(path), str(fruit / "images"))
        return names[-1], get_detection_dataset_dicts(names[-1], filter_empty=False)

    yield change_and_load
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def each_annotation(**fields):
    def change(data):
        for annotation in data["annotations"]:
            annotation.update(fields)

    return change


def perfect_ap(name, records, kind):
    evaluator = kind(name)
    evaluator.reset()
    for record in records:
        found = Instances((record["height"], record["width"]))
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in record["annotations"])]
        found.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        found.scores = torch.ones(len(boxes))
        classes = [a["category_id"] for a in record["annotations"]]
        found.pred_classes = torch.tensor(classes, dtype=torch.long)
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()["bbox"]["AP"]


def without(*fields):
    def change(data):
        for annotation in data["annotations"]:
            for field in fields:
                annotation.pop(field, None)

    return change


@pytest.mark.parametrize(
    "change",
    [
        without("area"),
        without("area", "iscrowd"),
        each_annotation(segmentation=[[]]),
        each_annotation(segmentation=[[1, 2, 3, 4]]),
        each_annotation(segmentation=[[[1, 2, 3, 4, 5, 6]]], keypoints=["a"]),
        each_annotation(segmentation={"counts": "zz", "size": [1, 1]}),
        each_annotation(ignore=0),
        lambda d: [r.update(id=float(r["id"])) for r in d["images"] + d["annotations"]],
        lambda d: (
            [r.update(id=str(r["id"])) for r in d["images"]],
            [a.update(image_id=str(a["image_id"])) for a in d["annotations"]],
        ),
        lambda d: d["categories"][0].update(name=5),
        lambda d: [r.update(width=float(r["width"])) for r in d["images"]],
    ],
)
@pytest.mark.parametrize("kind", [COCOEvaluator, FastCOCOEvaluator])
def test_what_can_be_read_keeps_its_boxes_and_evaluates(load, fruit, change, kind):
    count = len(json.loads((fruit / "annotations.json").read_text())["annotations"])
    name, records = load(change)
    assert sum(len(record["annotations"]) for record in records) == count
    assert perfect_ap(name, records, kind) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["annotations"][0].update(image_id=[1]), "annotation id 1: image_id [1]"),
        (lambda d: d["images"][0].update(id=10**30), "image number 0 has no id that can be used"),
        (lambda d: d["images"][0].update(file_name="a\0b.png"), "NUL"),
        (lambda d: d["categories"][0].pop("name"), "category id 1 has no name"),
        (lambda d: d["images"][0].update(id="1"), "two kinds, numbers and text"),
        (lambda d: d["annotations"][0].update(ignore={}), "annotation id 1 of image id 1"),
        (lambda d: d["annotations"][0].update(area="big"), "area is 'big'"),
        (lambda d: d["annotations"][0].update(area=float("nan")), "area is nan"),
        (lambda d: d["annotations"][0].update(iscrowd="yes"), "iscrowd is 'yes'"),
        (lambda d: d["annotations"][0].update(bbox=[9, 9, -2, -1]), "(000.png): bbox [9, 9, -2"),
        (lambda d: d["annotations"][0].update(bbox=[9, 9, 10**400, 1]), "not finite"),
        (lambda d: d["categories"][1].update(name=d["categories"][0]["name"]), "same name"),
        (lambda d: d["annotations"].clear(), "no boxes to train on"),
        (lambda d: d["images"].clear(), "there are no images"),
    ],
)
def test_what_cannot_be_used_is_named(load, change, words):
    with pytest.raises(DatasetError) as caught:
        load(change)
    assert words in str(caught.value)


def test_masks_on_some_annotations_only(load, fruit):
    def change(data):
        x, y, w, h = data["annotations"][0]["bbox"]
        data["annotations"][0]["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        data["annotations"][1]["image_id"] = data["annotations"][0]["image_id"]

    name, records = load(change)
    record = next(r for r in records if any("segmentation" in a for a in r["annotations"]))
    assert len(record["annotations"]) > 1
    boxes = DetrDatasetMapper(augmentation=[], augmentation_with_crop=None)(record)["instances"]
    assert len(boxes) == len(record["annotations"]) and not boxes.has("gt_masks")
    masks = DetrDatasetMapper(augmentation=[], augmentation_with_crop=None, mask_on=True)
    with pytest.raises(ValueError, match=r"annotation 2 of \d.*no segmentation"):
        masks(record)
    picture = np.zeros((record["height"], record["width"], 3), np.uint8)
    assert Visualizer(picture, MetadataCatalog.get(name)).draw_dataset_dict(record) is not None
    with pytest.raises(DatasetError, match="it has no segmentation that can be read"):
        files = str(fruit / "annotations.json"), str(fruit / "images")
        validate_coco(*files, needs_masks=True)


# ----------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        (np.array([[0, 255], [32768, 65535]], np.uint16), "I;16", [[0, 1], [128, 255]]),
        (np.array([[0, 255]], np.uint8), "L", [[0, 255]]),
    ],
)
def test_sixteen_bits_keep_their_range(tmp_path, values, mode, expected):
    path = str(tmp_path / "deep.png")
    Image.fromarray(values).save(path)
    assert Image.open(path).mode == mode
    assert utils.read_image(path, format="RGB")[..., 0].tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_images_without_a_known_range_are_refused_by_name(tmp_path, dtype):
    path = str(tmp_path / "deep.tiff")
    Image.fromarray(np.ones((2, 2), dtype)).save(path)
    with pytest.raises(OSError, match="deep.tiff.*range is not known"):
        utils.read_image(path, format="RGB")


def test_damaged_images_and_decompression_bombs_are_named(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("RGB", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(OSError, match="bomb.png.*exceeds limit"):
        utils.read_image(str(path))
    (tmp_path / "junk.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    with pytest.raises(OSError, match="junk.png"):
        utils.read_image(str(tmp_path / "junk.png"))


def test_the_check_rotates_images_as_the_loader_does(fruit):
    path = fruit / "annotations.json"
    data = json.loads(path.read_text())
    for orientation, record in zip((1, 3, 6, 8), data["images"], strict=True):
        exif = Image.Exif()
        exif[0x0112] = orientation
        size = (record["width"], record["height"])
        stored = size if orientation < 5 else size[::-1]
        record["file_name"] = f"turned{orientation}.jpg"
        Image.new("RGB", stored).save(fruit / "images" / record["file_name"], exif=exif)
    path.write_text(json.dumps(data))
    check_image_files(str(path), str(fruit / "images"))
    turned = data["images"][2]
    turned["width"], turned["height"] = turned["height"] + 1, turned["width"]
    path.write_text(json.dumps(data))
    with pytest.raises(DatasetError, match="turned6.jpg.*pixels, the annotations say"):
        check_image_files(str(path), str(fruit / "images"))


def test_a_very_long_image_keeps_a_pixel():
    picture = np.zeros((3, 4000, 3), np.uint8)
    resized, _ = T.apply_transform_gens([T.ResizeShortestEdge((80,), 96, "choice")], picture)
    assert resized.shape == (1, 96, 3)


# ------------------------------------------------------------------- folders, VOC, configs


def test_links_may_lead_into_named_folders(fruit, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    os.rename(fruit / "images" / "000.png", store / "000.png")
    os.symlink(store / "000.png", fruit / "images" / "000.png")
    files = str(fruit / "annotations.json"), str(fruit / "images")
    with pytest.raises(DatasetError, match=r"train.image_roots=\[...\] to allow"):
        validate_coco(*files)
    validate_coco(*files, image_roots=[str(store)])
    validate_coco(*files, image_roots=str(store))
    with pytest.raises(DatasetError, match="symbolic link"):
        validate_coco(*files, image_roots=[str(tmp_path / "other")])
    with pytest.raises(DatasetError, match="leaves the image folder"):
        validate_coco(*files, image_roots=str(tmp_path / "other"))  # not each of its letters


VOC = (
    "<annotation><size><width>9</width><height>9</height></size><object><name>cat</name>"
    "<difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax>"
    "<ymax>5</ymax></bndbox></object></annotation>"
)


def load_voc(folder, text, image_id="7"):
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets/Main/val.txt").write_text(f"{image_id}\n")
    (folder / "Annotations/7.xml").write_text(text)
    return load_voc_instances(str(folder), "val", ["cat"])


@pytest.mark.parametrize("word", ["", "Unspecified", "0", "1"])
def test_every_spelling_of_vocs_difficult_mark_is_read(tmp_path, word):
    (record,) = load_voc(tmp_path, VOC.replace(">0</difficult>", f">{word}</difficult>"))
    assert len(record["annotations"]) == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (">0</difficult>", ">x</difficult>", "<difficult> is 'x'"),
        ("<xmin>1", "<xmin>nan", "xmin nan"),
        ("<ymax>5", "<ymax>inf", "ymax inf"),
        ("<xmax>5", "<xmax>0", "the box of an object 'cat' is empty"),
        ("<width>9", "<width>0", "size/width is 0"),
        ("<width>9</width>", "", "no 'size/width'"),
        ("cat", "dog", "'dog' is not among"),
        ("</annotation>", "", "no element|mismatched|no element found|unclosed"),
    ],
)
def test_what_cannot_be_used_of_voc_is_named(tmp_path, old, new, words):
    with pytest.raises(ValueError, match=rf"7\.xml.*({words})"):
        load_voc(tmp_path, VOC.replace(old, new))


@pytest.mark.parametrize("image_id", ["../7", "/etc/hostname", "a/b", "..", "..\\7"])
def test_ids_of_voc_stay_in_its_folders(tmp_path, image_id):
    with pytest.raises(ValueError, match="not a file name"):
        load_voc(tmp_path, VOC, image_id)


def test_config_parts_that_do_not_fit_are_named(fruit, tmp_path):
    data = json.loads((fruit / "annotations.json").read_text())
    other = json.loads(json.dumps(data))
    for record, key in [(c, "id") for c in other["categories"]] + [
        (a, "category_id") for a in other["annotations"]
    ]:
        record[key] = record[key] % 3 + 1
    fewer = {**data, "categories": data["categories"][:-1]}
    fewer["annotations"] = [a for a in data["annotations"] if a["category_id"] != 3]
    names = [f"{kind}_{uuid.uuid4().hex}" for kind in ("train", "other", "fewer")]
    for name, content in zip(names, (data, other, fewer), strict=True):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        register_coco_instances(name, {}, str(path), str(fruit / "images"))
    cfg = toy.make_config(fruit, tmp_path, name=names[0] + "_toy")
    cfg.dataloader.train.dataset.names = cfg.dataloader.test.dataset.names = names[0]
    cfg.dataloader.evaluator.dataset_name = names[0]
    try:
        validate_config_data(cfg)
        for name, words in (
            (names[1], r"class 0 is 'class0' in .* but 'class2' in"),
            (names[2], r"has 3 categories, .* 2"),
        ):
            cfg.dataloader.test.dataset.names = cfg.dataloader.evaluator.dataset_name = name
            with pytest.raises(DatasetError, match=words):
                validate_config_data(cfg)
        cfg.dataloader.test.dataset.names = names[0]
        with pytest.raises(DatasetError, match="dataloader.evaluator 'fewer_"):
            validate_config_data(cfg)
        alone = cfg.dataloader.evaluator
        cfg.dataloader.evaluator = {"evaluators": [{"dataset_name": names[0]}, alone]}
        with pytest.raises(DatasetError, match=r"set dataloader.evaluator.evaluators.1.dataset_n"):
            validate_config_data(cfg)
        cfg.dataloader.evaluator = alone
        cfg.dataloader.evaluator.dataset_name = names[0]
        cfg.dataloader.test.dataset.names = [names[0], names[0]]
        with pytest.raises(DatasetError, match="evaluate one after the other"):
            validate_config_data(cfg)
        cfg.dataloader.test.dataset.names = names[0]
        cfg.model.num_classes = 9
        with pytest.raises(DatasetError, match=r"some predictions could not.*num_classes=3"):
            validate_config_data(cfg)
    finally:
        for name in [*names, names[0] + "_toy"]:
            if name in DatasetCatalog:
                DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)


def test_own_classes_under_a_known_name_are_refused_in_one_line(fruit):
    from detectron2.data.datasets import load_coco_json

    with pytest.raises(ValueError, match="3 classes.*'coco_2017_train'.*register your own name"):
        load_coco_json(str(fruit / "annotations.json"), str(fruit / "images"), "coco_2017_train")
