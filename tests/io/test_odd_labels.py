"""Labels as people's tools write them: names of any letters, sideways images, files left over."""

import os
from xml.sax.saxutils import escape

import pytest
from PIL import Image

from tests.io.label_files import BOXES, SIZE, voc_xml, write_voc, write_yolo
from tests.io.label_files import image as picture
from tokendetr.errors import DatasetError
from tokendetr.io.label_folders import recognize, to_coco

pytest.importorskip("hotcoco", reason="hotcoco reads the labels")


@pytest.fixture
def yolo(tmp_path):
    return write_yolo(tmp_path / "yolo")


def test_voc_names_of_any_letters_stay_whole(tmp_path):
    names = ["Größe", "猫", "a&b <c>", "it's `x`"]
    write_voc(tmp_path)
    for encoding in ("utf-8", "latin-1", "utf-16"):
        chosen = [name for name in names if encoding != "latin-1" or name != "猫"]
        boxes = [(escape(name), (1, 1, 9, 9)) for name in chosen]
        text = f'<?xml version="1.0" encoding="{encoding}"?>{voc_xml("a.jpg", boxes)}'
        (tmp_path / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
        data = to_coco(recognize(tmp_path))["all"][1]
        found = {c["id"]: c["name"] for c in data["categories"]}
        assert sorted(found.values()) == sorted([*chosen, "cat", "dog"])
        assert [found[a["category_id"]] for a in data["annotations"]][: len(chosen)] == chosen


def move(path, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


def test_voc_files_are_found_in_any_case_and_depth(tmp_path):
    write_voc(tmp_path)
    images, labels = tmp_path / "jpegIMAGES", tmp_path / "ANNOTATIONS"
    (tmp_path / "JPEGImages").rename(images)
    (tmp_path / "Annotations").rename(labels)
    move(labels / "a.xml", labels / "deep" / "a.XML")
    move(images / "a.jpg", images / "deep" / "A.JPG")
    (labels / "._b.xml").write_bytes(b"\0\5\26\7")
    root, data = to_coco(recognize(tmp_path))["all"]
    assert root == images
    assert sorted(record["file_name"] for record in data["images"]) == ["b.jpg", "deep/A.JPG"]
    assert len(data["annotations"]) == sum(map(len, BOXES.values()))


def test_voc_images_of_one_name_are_those_of_the_same_subfolder(tmp_path):
    for split in ("train", "val"):
        source = write_voc(tmp_path / "source" / split)
        move(source / "Annotations" / "a.xml", tmp_path / "Annotations" / split / "a.xml")
        move(source / "JPEGImages" / "a.jpg", tmp_path / "JPEGImages" / split / "a.jpg")
    parts = to_coco(recognize(tmp_path))
    names = {name: [r["file_name"] for r in data["images"]] for name, (_, data) in parts.items()}
    assert names == {"train": ["train/a.jpg"], "val": ["val/a.jpg"]}
    move(tmp_path / "Annotations/val/a.xml", tmp_path / "Annotations/other/a.xml")
    with pytest.raises(DatasetError, match="its image may be .*train/a.jpg or .*val/a.jpg"):
        to_coco(recognize(tmp_path))


def test_voc_images_without_labels_and_images_listed_twice_are_said(tmp_path, caplog):
    write_voc(tmp_path, {"train": ["a", "a"]})
    (tmp_path / "Annotations" / "b.xml").unlink()
    data = to_coco(recognize(tmp_path))["train"][1]
    assert len(data["images"]) == 1
    assert "1 images of" in caplog.text and "b.jpg" in caplog.text
    assert "lists 1 images twice" in caplog.text


@pytest.mark.parametrize("suffix", [".jpg", ".heic"])  # hotcoco does not know the second
def test_sideways_images_have_the_extents_of_yolos_shares(yolo, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    source = yolo / "images" / "train" / "deep" / "a.png"
    Image.new("RGB", SIZE).save(source.with_suffix(suffix), format="JPEG", exif=exif)
    source.unlink()
    label = yolo / "labels" / "train" / "deep" / "a.txt"
    label.write_text("0 0.5 0.25 0.2 0.1\n")
    image, box = (to_coco(recognize(yolo))["train"][1][k][0] for k in ("images", "annotations"))
    assert (image["width"], image["height"]) == SIZE[::-1]
    assert box["bbox"] == pytest.approx([0.4 * 30, 0.2 * 40, 0.2 * 30, 0.1 * 40])


def test_yolos_label_files_are_found_or_missed_aloud(yolo, caplog):
    labels = yolo / "labels" / "train" / "deep"
    (labels / "a.txt").rename(labels / "a.TXT")
    (labels / "b.txt").write_text("0 0.5 0.5 0.1 0.1")
    data = to_coco(recognize(yolo))["train"][1]
    assert len(data["annotations"]) == len(BOXES["a"])
    assert "1 label files belong to no image" in caplog.text and "b.txt" in caplog.text
    (labels / "a.TXT").unlink()
    (labels / "a.txt").mkdir()
    with pytest.raises(DatasetError, match=r"a\.txt cannot be read"):
        to_coco(recognize(yolo))


ODD_FILES = [
    ("data.yaml", b"names: [cat, null]", "None among its names"),
    ("data.yaml", b"names: [yes, no]", "True among its names is not a name"),
    ("data.yaml", b"names: {0: cat, b: dog}", "names must be numbered 0 to 1"),
    ("data.yaml", b"nc: 5\nnames: [cat, dog]", "nc is 5, but there are 2 names"),
    ("data.yaml", b"names: [c\xe4t]", "cannot be read as UTF-8"),
    ("labels/train/deep/a.txt", b"0 .5 .5 .1 .1 \xe9", "cannot be read as UTF-8"),
    ("images/train/deep/a.png", b"no image", r"images/train/deep/a\.png"),
]


@pytest.mark.parametrize(("name", "content", "words"), ODD_FILES)
def test_odd_files_of_yolo_are_named(yolo, name, content, words):
    (yolo / name).write_bytes(content)
    with pytest.raises(DatasetError, match=words):
        to_coco(recognize(yolo))


@pytest.mark.parametrize("name", ["images/train/x.png", "labels/train/x.txt", "x.txt"])
def test_pipes_and_folders_with_names_of_files_are_left_out(yolo, name):
    (yolo / name).parent.mkdir(exist_ok=True)
    os.mkfifo(yolo / name)
    (yolo / "images/train/y.png").mkdir()
    assert len(to_coco(recognize(yolo))["train"][1]["images"]) == 1


@pytest.mark.parametrize("name", ["labels/train/deep/a.txt", "data.yaml"])
def test_a_pipe_that_is_needed_is_named_without_waiting(yolo, name):
    (yolo / name).unlink()
    os.mkfifo(yolo / name)
    with pytest.raises(DatasetError, match=f"{name} .*a pipe"):
        to_coco(recognize(yolo))


def test_linked_folders_are_entered_once(yolo, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("store")
    for kind in ("images", "labels"):
        (yolo / kind / "train/deep").rename(elsewhere / kind)
        (yolo / kind / "train/deep").symlink_to(elsewhere / kind)
    (elsewhere / "images" / "loop").symlink_to(elsewhere / "images")
    (yolo / "images/train/up").symlink_to(yolo / "images")
    (_, data) = to_coco(recognize(yolo))["train"]
    assert [image["file_name"] for image in data["images"]] == ["deep/a.png"]
    assert len(data["annotations"]) == 1


def test_a_link_to_nothing_is_named(yolo):
    (yolo / "images/train/x.png").symlink_to("nothing.png")
    with pytest.raises(DatasetError, match=r"x\.png"):
        to_coco(recognize(yolo))


def test_two_xml_files_of_one_image_are_refused(tmp_path):
    root = write_voc(tmp_path)
    (root / "Annotations" / "a.xml").write_text(voc_xml("b.jpg", BOXES["a"]))
    with pytest.raises(DatasetError, match=r"b\.xml and .*a\.xml both belong to .*b\.jpg"):
        to_coco(recognize(root))


def test_an_image_with_labels_in_two_splits_is_refused(tmp_path):
    root = write_voc(tmp_path, {"train": ["a"], "trainval": ["a", "b"], "val": ["b"]})
    assert set(to_coco(recognize(root))) == {"train", "trainval", "val"}  # with the same file
    (root / "Annotations" / "a.xml").write_text(voc_xml("b.jpg", BOXES["a"]))
    (root / "ImageSets" / "Main" / "trainval.txt").unlink()
    with pytest.raises(DatasetError, match=r"b\.xml and .*a\.xml both belong to .*b\.jpg"):
        to_coco(recognize(root))


@pytest.mark.parametrize("kind", ["voc", "yolo", "yolo above", "coco"])
def test_two_folders_of_one_split_are_refused(tmp_path, kind):
    root = tmp_path / "data"
    if kind.startswith("yolo"):
        write_yolo(root)
        second = "images/valid/c.png" if kind == "yolo" else "val/images/c.png"
        picture(root / second)
    for split in () if kind.startswith("yolo") else ("train", "val", "valid"):
        picture(root / split / "c.jpg")
        if kind == "voc":
            (root / split / "c.xml").write_text(voc_xml("c.jpg", BOXES["a"]))
        else:
            images = '{"images": [{"file_name": "c.jpg"}], "annotations": [], "categories": []}'
            (root / split / "_annotations.coco.json").write_text(images)
    with pytest.raises(DatasetError, match="are both the split 'val': keep one of them"):
        recognize(root)


def test_images_beside_the_folders_of_splits_are_said(yolo, caplog):
    recognize(yolo)
    assert not caplog.text
    picture(yolo / "images" / "c.png")
    picture(yolo / "images" / "more" / "d.png")
    assert set(recognize(yolo).parts) == {"train", "val"}
    assert "2 images of" in caplog.text and "c.png" in caplog.text


def test_elements_without_end_are_no_annotation(tmp_path):
    root = write_voc(tmp_path)
    deep = f"<annotation>{'<a>' * 20000}{'</a>' * 20000}</annotation>"
    (root / "Annotations" / "a.xml").write_text(deep)
    with pytest.raises(DatasetError, match=r"a\.xml: .* too deep"):
        to_coco(recognize(root))


@pytest.mark.parametrize("text", ["<root/>", '<annotation xmlns="http://x"/>'])
def test_xml_of_something_else_is_no_image_without_boxes(tmp_path, text):
    write_voc(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DatasetError, match=r"a\.xml holds <.*not VOC's"):
        to_coco(recognize(tmp_path))


def test_cvats_subfolders_and_attributes_are_read(tmp_path):
    root = write_voc(tmp_path, {"default": ["deep/a", "deep/my b"]})
    for stem, name in (("a", "a"), ("b", "my b")):
        move(root / f"JPEGImages/{stem}.jpg", root / f"JPEGImages/deep/{name}.jpg")
        attribute = "<attributes><attribute><name>no class</name></attribute></attributes></object>"
        text = voc_xml(f"deep/{name}.jpg", BOXES[stem]).replace("</object>", attribute)
        move(root / f"Annotations/{stem}.xml", root / f"Annotations/deep/{name}.xml")
        (root / f"Annotations/deep/{name}.xml").write_text(text)
    _, data = to_coco(recognize(root))["default"]
    assert [image["file_name"] for image in data["images"]] == ["deep/a.jpg", "deep/my b.jpg"]
    names = {category["id"]: category["name"] for category in data["categories"]}
    assert [names[a["category_id"]] for a in data["annotations"]] == ["cat", "dog", "cat"]


def test_vocs_lists_per_class_are_no_splits(tmp_path):
    lists = {"train": ["a"], "val": ["b 1"], "cat_train": ["a  1"], "cat_val": ["x -1", "y  0"]}
    root = write_voc(tmp_path, lists)
    move(root / "Annotations" / "b.xml", root / "Annotations" / "b 1.xml")
    assert set(recognize(root).parts) == {"train", "val"}


def test_cocos_own_folder_is_read_by_its_boxes(tmp_path):
    picture(tmp_path / "train2017" / "c.jpg")
    folder = tmp_path / "annotations"
    folder.mkdir()
    for kind in ("captions", "instances", "person_keypoints"):
        images = '{"images": [{"file_name": "c.jpg"}], "annotations": [], "categories": []}'
        (folder / f"{kind}_train2017.json").write_text(images)
    (folder / "._instances_train2017.json").write_bytes(b"\0\5\26\7")
    (part,) = recognize(tmp_path).parts.values()
    assert part.labels == [folder / "instances_train2017.json"]
    assert part.images == tmp_path / "train2017"
