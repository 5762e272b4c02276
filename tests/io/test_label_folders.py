"""Folders of VOC, YOLO and COCO labels: recognized, converted box by box, refused with the file."""

import json
import shutil

import pytest

from tests.io.label_files import BOXES, image, voc_xml, write_voc, write_yolo
from tokendetr.cli import convert_dataset
from tokendetr.data.convert import convert_folder
from tokendetr.errors import DatasetError, OutputError
from tokendetr.io.label_folders import recognize, split_at_random, to_coco

pytest.importorskip("hotcoco", reason="hotcoco reads the labels")


def boxes(data: dict) -> dict[str, list]:
    """By file name, classes with [x, y, width, height]."""
    names = {category["id"]: category["name"] for category in data["categories"]}
    found: dict[str, list] = {image["file_name"]: [] for image in data["images"]}
    files = {image["id"]: image["file_name"] for image in data["images"]}
    for annotation in data["annotations"]:
        box = tuple(round(value, 4) for value in annotation["bbox"])
        found[files[annotation["image_id"]]].append((names[annotation["category_id"]], box))
    return found


def wanted(stem: str, dog: str = "dog") -> list:
    return [
        (label.replace("dog", dog), (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1))
        for label, (x0, y0, x1, y1) in BOXES[stem]
    ]


def read(path) -> dict:
    return json.loads(path.read_text())


def test_voc_with_lists_becomes_a_file_per_list_with_the_same_categories(tmp_path, capsys):
    root = write_voc(tmp_path / "voc", {"train": ["a"], "val": ["b"]})
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text("a 1\nb -1\n")  # of one class
    out = tmp_path / "out"
    convert_dataset.main(["--input", str(root), "--output", str(out), "--names", "dog", "cat"])
    assert {path.name for path in out.iterdir()} == {"train.json", "val.json"}
    train, val = read(out / "train.json"), read(out / "val.json")
    assert boxes(train) == {"a.jpg": wanted("a")}
    assert boxes(val) == {"b.jpg": wanted("b")}
    assert [c["name"] for c in train["categories"]] == ["dog", "cat"]
    assert train["categories"] == val["categories"]
    assert "2 boxes" in capsys.readouterr().out


def test_a_folder_without_splits_is_split_the_same_way_every_time(tmp_path):
    root = write_voc(tmp_path / "voc")
    for number in range(8):
        image(root / "JPEGImages" / f"{number}.jpg")
        (root / "Annotations" / f"{number}.xml").write_text(voc_xml(f"{number}.jpg", BOXES["a"]))
    first = to_coco(recognize(root), val_share=0.2)
    assert {name: len(data["images"]) for name, (_, data) in first.items()} == {
        "train": 8,
        "val": 2,
    }
    assert first == to_coco(recognize(root), val_share=0.2)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_both_parts_of_a_split_have_images(share):
    for count in (2, 3, 10):
        data = {"images": [{"id": n} for n in range(count)], "annotations": [], "categories": []}
        parts = split_at_random(data, share)
        assert all(parts[name]["images"] for name in ("train", "val"))
        assert sum(len(part["images"]) for part in parts.values()) == count


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_to_split_are_refused(count):
    with pytest.raises(DatasetError, match=f"have {count} image"):
        split_at_random({"images": [{"id": 1}] * count, "annotations": []}, 0.2)


def test_yolo_keeps_subfolders_and_images_without_labels(tmp_path):
    root = write_yolo(tmp_path / "yolo")
    files = {file.json_file.stem: file for file in convert_folder(root, tmp_path / "out")}
    assert boxes(read(files["train"].json_file)) == {"deep/a.png": wanted("a", "dog: small")}
    assert boxes(read(files["val"].json_file)) == {
        "deep/b.png": wanted("b", "dog: small"),
        "empty.png": [],
    }
    assert files["val"].image_root == root / "images" / "val"


def write_undivided_yolo(root, splits):
    """Write YOLO's format with folders that are not named like splits, which data.yaml names."""
    write_yolo(root)
    for kind in ("images", "labels"):
        (root / kind / "train").rename(root / kind / "first")
        (root / kind / "val").rename(root / kind / "second")
    (root / "data.yaml").write_text(f"names: [cat, dog]\n{splits}")
    return root


@pytest.mark.parametrize(
    "splits",
    [
        "train: images/first\nval: images/second\n",
        "train: first.txt\nval: [second.txt]\n",
        "path: ../elsewhere/data\ntrain: ./first.txt\nvalid: images/second\n",
    ],
)
def test_yolo_is_split_by_the_folders_and_lists_that_data_yaml_names(tmp_path, splits):
    root = write_undivided_yolo(tmp_path / "yolo", splits)
    (root / "first.txt").write_text(f"{root}/images/first/deep/a.png\n")
    (root / "second.txt").write_text("./images/second/empty.png\nimages/second/deep/b.png\n\n")
    parts = {name: boxes(data) for name, (_, data) in to_coco(recognize(root)).items()}
    assert parts == {
        "train": {"first/deep/a.png": wanted("a", "dog")},
        "val": {"second/deep/b.png": wanted("b", "dog"), "second/empty.png": []},
    }


def test_a_yolo_list_of_other_images_is_refused(tmp_path):
    root = write_undivided_yolo(tmp_path / "yolo", "train: first.txt\nval: images/second\n")
    (root / "first.txt").write_text("images/first/missing.png\n")
    with pytest.raises(DatasetError, match=r"first.txt lists 'images/first/missing.png'"):
        recognize(root)


@pytest.mark.parametrize("splits", ["", "train: images\nval: images\n", "train: nowhere\n"])
def test_yolo_without_splits_is_one_part(tmp_path, splits):
    root = write_undivided_yolo(tmp_path / "yolo", splits)
    assert list(recognize(root).parts) == ["all"]


def test_a_folder_per_split_is_recognized_in_all_three_formats(tmp_path):
    for split, stem in (("train", "a"), ("valid", "b")):
        image(tmp_path / "voc" / split / f"{stem}.jpg")
        xml = tmp_path / "voc" / split / f"{stem}.xml"
        xml.write_text(voc_xml(f"{stem}.jpg", BOXES[stem]))
    voc = to_coco(recognize(tmp_path / "voc"))
    assert boxes(voc["val"][1]) == {"b.jpg": wanted("b")}
    # A class that one split lacks keeps its number.
    assert voc["train"][1]["categories"] == voc["val"][1]["categories"]

    yolo = write_yolo(tmp_path / "yolo")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (yolo / split).mkdir(exist_ok=True)
            shutil.move(yolo / kind / split, yolo / split / kind)
    shutil.rmtree(yolo / "images")
    assert list(to_coco(recognize(yolo))["train"][1]["images"][0].values())[1] == "deep/a.png"

    for split, (images, data) in voc.items():
        file = images / "_annotations.coco.json"
        file.write_text(json.dumps(data))
        for xml in images.glob("*.xml"):
            xml.unlink()
        assert recognize(tmp_path / "voc").parts[split].labels == [file]
    assert recognize(tmp_path / "voc").kind == "coco"


def spoil_voc(root, text: str) -> None:
    (root / "Annotations" / "b.xml").write_text(text)


GOOD = voc_xml("b.jpg", BOXES["b"])
SPOILT = {
    "cut off": (GOOD[:-40], r"b\.xml is not readable XML"),
    "no image": (GOOD.replace("b.jpg", "c.jpg"), None),
    "unknown image": (voc_xml("../../x.jpg", BOXES["b"]).replace("b.", "x."), None),
    "inverted": (GOOD.replace("<xmin>1<", "<xmin>12<"), r"b\.xml.*inverted"),
    "no name": (GOOD.replace("<name>dog</name>", ""), r"b\.xml: an <object> has no <name>"),
    "outside": (GOOD.replace("<xmax>40<", "<xmax>90<"), r"b\.jpg.*outside"),
    "wrong size": (GOOD.replace("<width>40<", "<width>80<"), r"b\.jpg.*40 x 30 pixels"),
    "entities": ("<!DOCTYPE a [<!ENTITY x 'y'>]>" + GOOD, r"b\.xml declares a DOCTYPE"),
    "no number": (GOOD.replace("<xmin>1<", "<xmin>one<"), r"b\.xml"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_damaged_xml_file_is_named_and_nothing_is_written(tmp_path, case):
    root = write_voc(tmp_path / "voc")
    text, message = SPOILT[case]
    spoil_voc(root, text)
    if message is None:  # falls back to the image with the file's own name
        assert len(convert_folder(root, tmp_path / "out")) == 2
        return
    with pytest.raises(DatasetError, match=message):
        convert_folder(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_image_and_a_missing_size_are_handled_by_name(tmp_path):
    root = write_voc(tmp_path / "voc")
    spoil_voc(root, voc_xml("b.jpg", BOXES["b"], size=(0, 0)))
    sizes = [(i["width"], i["height"]) for i in to_coco(recognize(root))["all"][1]["images"]]
    assert sizes == [(40, 30), (40, 30)]
    (root / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DatasetError, match=r"b\.xml: its image 'b\.jpg' is not in"):
        to_coco(recognize(root))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7 .5 .5 .1 .1", r"deep/a\.txt.*7 out of range"),
        ("0 .5 .5", r"deep/a\.txt: line 1 has 3 fields, not the 5 of a box"),
        ("0 .5 .5 .1 .1\n\n0 .1 .1 .5 .1 .5 .5", r"line 3 has 7 fields.*convert polygons"),
        ("0 .5 .5 .1 x", r"deep/a\.txt"),
        ("0 .9 .9 .9 .9", r"deep/a\.png.*outside"),
    ],
)
def test_a_malformed_yolo_line_is_named(tmp_path, line, message):
    root = write_yolo(tmp_path / "yolo")
    (root / "labels" / "train" / "deep" / "a.txt").write_text(line + "\n")
    with pytest.raises(DatasetError, match=message) as caught:
        convert_folder(root, tmp_path / "out")
    assert "train.validate_data" not in str(caught.value)  # which only a training has


def test_files_that_exist_are_not_replaced(tmp_path):
    root = write_voc(tmp_path / "voc", {"train": ["a"], "val": ["b"]})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "val.json").write_text("mine")
    with pytest.raises(OutputError, match=r"val\.json exists"):
        convert_folder(root, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["val.json"]


def test_folders_without_data_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        recognize(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="has no COCO JSON, Pascal VOC XML or YOLO"):
        recognize(tmp_path)
    root = write_voc(tmp_path / "voc", {"train": ["a", "gone"]})
    with pytest.raises(DatasetError, match="lists 'gone'"):
        recognize(root)
