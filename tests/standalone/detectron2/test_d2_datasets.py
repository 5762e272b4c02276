"""Catalogs and the COCO, LVIS and VOC readers."""

import json
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import (
    convert_to_coco_json,
    get_lvis_instances_meta,
    load_coco_json,
    load_lvis_json,
    load_voc_instances,
    register_coco_instances,
    register_lvis_instances,
    register_pascal_voc,
)
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.structures import BoxMode

from tests.standalone.detectron2.coco_files import annotation, box_polygon, random_coco, write_coco


def edit(json_file: str, change) -> None:
    with open(json_file) as file:
        content = json.load(file)
    change(content)
    with open(json_file, "w") as file:
        json.dump(content, file)


def test_a_registered_dataset_is_loaded_on_demand(name):
    calls = []
    DatasetCatalog.register(name, lambda: calls.append(1) or [{"file_name": "a"}])
    assert calls == []
    assert name in DatasetCatalog.list()
    assert DatasetCatalog.get(name) == [{"file_name": "a"}]
    with pytest.raises(AssertionError, match="already registered"):
        DatasetCatalog.register(name, list)
    DatasetCatalog.remove(name)
    with pytest.raises(KeyError, match="coco_2017_train"):
        DatasetCatalog.get(name)


def test_only_functions_can_be_registered(name):
    with pytest.raises(AssertionError):
        DatasetCatalog.register(name, [])  # type: ignore[arg-type]


def test_metadata_can_be_set_once(name):
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = ["a"]
    metadata.thing_classes = ["a"]
    with pytest.raises(AssertionError, match="different value"):
        metadata.thing_classes = ["b"]
    with pytest.raises(AttributeError, match="thing_colors"):
        _ = metadata.thing_colors
    assert metadata.get("thing_colors", 5) == 5
    assert metadata.class_names == ["a"]
    assert MetadataCatalog.get(name) is metadata
    assert metadata.as_dict() == {"name": name, "thing_classes": ["a"]}


def test_builtin_names_and_coco_classes():
    names = set(DatasetCatalog.list())
    assert {"coco_2017_train", "coco_2017_val", "coco_2017_val_100", "coco_2017_test-dev"} <= names
    assert {"lvis_v1_train", "lvis_v1_val", "voc_2007_trainval", "voc_2012_val"} <= names
    metadata = MetadataCatalog.get("coco_2017_val")
    assert len(metadata.thing_classes) == 80
    id_map = metadata.thing_dataset_id_to_contiguous_id
    # Spot checks against the published list: 13 is the stop sign, 90 the toothbrush.
    assert metadata.thing_classes[id_map[13]] == "stop sign"
    assert metadata.thing_classes[id_map[44]] == "bottle"
    assert metadata.thing_classes[id_map[67]] == "dining table"
    assert metadata.thing_classes[id_map[90]] == "toothbrush"
    assert MetadataCatalog.get("voc_2007_test").evaluator_type == "pascal_voc"


def test_missing_files_are_named():
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
        load_coco_json("/nowhere/instances.json", "/nowhere")


def test_load_coco_maps_categories_and_keeps_fields(tmp_path, name):
    annotations = [
        annotation(5, 2, 9, [1, 2, 30, 40], iscrowd=1, attributes={"x": 1}),
        annotation(6, 1, 3, [0, 0, 10, 10]),
    ]
    json_file, root = write_coco(
        tmp_path, sizes=[(50, 60), (70, 80)], annotations=annotations, with_images=False
    )
    register_coco_instances(name, {"extra": 1}, json_file, root)
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["cat", "dog", "cow"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1, 9: 2}
    assert metadata.extra == 1 and metadata.evaluator_type == "coco"
    assert [r["image_id"] for r in records] == [1, 2]
    assert records[1]["file_name"].endswith("images/0002.png")
    assert (records[1]["height"], records[1]["width"]) == (70, 80)
    crowd = records[1]["annotations"][0]
    assert crowd["iscrowd"] == 1 and crowd["category_id"] == 2
    assert crowd["bbox"] == [1, 2, 30, 40] and crowd["bbox_mode"] == BoxMode.XYWH_ABS
    assert "attributes" not in crowd
    with_extra = load_coco_json(json_file, root, None, extra_annotation_keys=["attributes", "id"])
    assert with_extra[1]["annotations"][0]["attributes"] == {"x": 1}
    assert with_extra[1]["annotations"][0]["category_id"] == 9


def test_bad_polygons_are_left_out_and_their_boxes_kept(tmp_path, caplog):
    annotations = [
        annotation(1, 1, 3, [0, 0, 9, 9], segmentation=[[1, 2, 3, 4]]),
        annotation(2, 1, 3, [0, 0, 9, 9], segmentation=[[1, 2, 3, 4], box_polygon(0, 0, 9, 9)]),
        annotation(3, 1, 3, [0, 0, 9, 9], segmentation={"counts": [5, 5, 90], "size": [10, 10]}),
    ]
    json_file, root = write_coco(tmp_path, sizes=[(10, 10)], annotations=annotations)
    with caplog.at_level(logging.INFO):
        kept = load_coco_json(json_file, root)[0]["annotations"]
    assert [a["bbox"] for a in kept] == [[0, 0, 9, 9]] * 3
    assert "segmentation" not in kept[0]
    assert kept[1]["segmentation"] == [box_polygon(0, 0, 9, 9)]
    assert isinstance(kept[2]["segmentation"]["counts"], bytes)
    assert "1 annotations whose segmentation cannot be read" in caplog.text


def test_keypoints_move_to_pixel_centers(tmp_path):
    json_file, root = write_coco(
        tmp_path,
        sizes=[(10, 10)],
        annotations=[annotation(1, 1, 3, [0, 0, 9, 9], keypoints=[1, 2, 2, 0, 0, 0])],
    )
    keypoints = load_coco_json(json_file, root)[0]["annotations"][0]["keypoints"]
    assert keypoints == [1.5, 2.5, 2, 0.5, 0.5, 0]


def _duplicate_id(content):
    content["annotations"][1]["id"] = content["annotations"][0]["id"]


def _unknown_category(content):
    content["annotations"][1]["category_id"] = 77


def _empty_box(content):
    content["annotations"][1]["bbox"] = []


def _no_width(content):
    del content["images"][0]["width"]


def _ignored(content):
    content["annotations"][1]["ignore"] = 1


def _no_categories(content):
    del content["categories"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (_duplicate_id, ValueError, ["annotation id 1 is used more than once"]),
        (_unknown_category, ValueError, ["category_id 77", "annotation id 2", "0001.png"]),
        (_empty_box, ValueError, ["bbox []", "annotation id 2", "0001.png"]),
        (_no_width, ValueError, ["image id 1", "0001.png", "width"]),
        (_ignored, ValueError, ["ignore", "annotation id 2", "0001.png"]),
        (_no_categories, ValueError, ["categories"]),
    ],
)
def test_broken_records_are_named(tmp_path, name, change, error, words):
    json_file, root = write_coco(
        tmp_path,
        sizes=[(50, 60)],
        annotations=[annotation(i, 1, 3, [0, 0, 5, 5]) for i in (1, 2)],
        with_images=False,
    )
    edit(json_file, change)
    with pytest.raises(error) as raised:
        load_coco_json(json_file, root, name)
    for word in [*words, json_file]:
        assert word in str(raised.value)


@pytest.mark.parametrize("text", ['{"images": [', "[]", "\x00\x01", '{"annotations": [{}]}'])
def test_a_broken_file_is_named(tmp_path, name, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="broken.json"):
        load_coco_json(str(path), "", name)


def test_annotations_of_unknown_images_are_counted(tmp_path, caplog):
    json_file, root = write_coco(
        tmp_path,
        sizes=[(50, 60)],
        annotations=[annotation(1, 1, 3, [0, 0, 5, 5]), annotation(2, 8, 3, [0, 0, 5, 5])],
    )
    with caplog.at_level(logging.WARNING):
        assert len(load_coco_json(json_file, root)) == 1
    assert "contains 1 annotations of images that it does not have" in caplog.text
    assert "annotation id 2: image_id 8 is not an image of the file" in caplog.text


def test_conversion_to_coco_keeps_boxes_and_ids(tmp_path, name):
    json_file, root = random_coco(tmp_path, with_images=False)
    register_coco_instances(name, {}, json_file, root)
    converted = convert_to_coco_dict(name)
    with open(json_file) as file:
        original = json.load(file)
    assert len(converted["annotations"]) == len(original["annotations"])
    by_id = {a["id"]: a for a in original["annotations"]}
    # Annotations are renumbered in the order of images, which is that of the file here.
    for new in converted["annotations"]:
        old = by_id[new["id"]]
        assert new["category_id"] == old["category_id"]
        assert new["bbox"] == pytest.approx(old["bbox"], abs=2e-3)
        assert new["area"] == pytest.approx(old["area"], rel=1e-3)
    out = tmp_path / "cache" / "out.json"
    convert_to_coco_json(name, str(out))
    first = out.read_bytes()
    convert_to_coco_json(name, str(out), allow_cached=True)
    assert out.read_bytes() == first
    assert len(load_coco_json(str(out), "")) == len(original["images"])


def lvis_content() -> dict:
    return {
        "images": [
            {
                "id": 2,
                "height": 10,
                "width": 20,
                "coco_url": "http://images.cocodataset.org/val2017/000002.jpg",
                "neg_category_ids": [2],
                "not_exhaustive_category_ids": [1],
            },
            {"id": 1, "height": 10, "width": 20, "file_name": "x/1.jpg"},
        ],
        "categories": [
            {"id": 2, "synonyms": ["b", "bb"], "image_count": 4},
            {"id": 1, "synonyms": ["a"], "image_count": 9},
        ],
        "annotations": [
            {"id": 7, "image_id": 2, "category_id": 2, "bbox": [1, 1, 2, 2], "segmentation": []}
        ],
    }


def test_lvis_records_and_categories_come_from_the_file(tmp_path, name):
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(lvis_content()))
    register_lvis_instances(name, {}, str(path), "/root")
    assert get_lvis_instances_meta(name)["thing_classes"] == ["a", "b"]
    records = DatasetCatalog.get(name)
    assert MetadataCatalog.get(name).thing_classes == ["a", "b"]
    assert MetadataCatalog.get(name).class_image_count[0] == {"id": 1, "image_count": 9}
    assert [r["file_name"] for r in records] == ["/root/x/1.jpg", "/root/val2017/000002.jpg"]
    assert records[1]["neg_category_ids"] == [2]
    assert records[1]["annotations"][0]["category_id"] == 1
    with pytest.raises(ValueError, match="no_such_lvis"):
        get_lvis_instances_meta("no_such_lvis")


@pytest.mark.parametrize(("key", "value"), [("image_id", 5), ("category_id", 3)])
def test_lvis_annotations_with_unknown_references_are_named(tmp_path, key, value):
    content = lvis_content()
    content["annotations"][0][key] = value
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"annotation id 7(.|\n)*{key} {value}"):
        load_lvis_json(str(path), "")


VOC_XML = """<annotation><size><width>50</width><height>40</height><depth>3</depth></size>
<object><name>{name}</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"""


def write_voc(root, ids_and_names) -> None:
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for image_id, class_name in ids_and_names:
        (root / "Annotations" / f"{image_id}.xml").write_text(VOC_XML.format(name=class_name))
    lines = "\n".join(image_id for image_id, _ in ids_and_names)
    (root / "ImageSets" / "Main" / "val.txt").write_text(lines + "\n")


def test_voc_boxes_start_at_zero(tmp_path, name):
    write_voc(tmp_path, [("000007", "cat")])
    register_pascal_voc(name, str(tmp_path), "val", 2007)
    record = DatasetCatalog.get(name)[0]
    assert record["image_id"] == "000007" and (record["height"], record["width"]) == (40, 50)
    assert record["annotations"][0]["bbox"] == [0, 2, 20, 30]
    assert MetadataCatalog.get(name).thing_classes[record["annotations"][0]["category_id"]] == "cat"


def test_voc_unknown_class_names_the_file(tmp_path):
    write_voc(tmp_path, [("000007", "dragon")])
    with pytest.raises(ValueError, match=r"000007\.xml.*dragon"):
        load_voc_instances(str(tmp_path), "val", ["cat"])


def test_dataset_dicts_join_filter_and_count(tmp_path, name, caplog):
    annotations = [
        annotation(1, 1, 3, [0, 0, 5, 5]),
        annotation(2, 2, 7, [0, 0, 5, 5], iscrowd=1),
    ]
    json_file, root = write_coco(
        tmp_path, sizes=[(50, 60)] * 3, annotations=annotations, with_images=False
    )
    other = name + "_b"
    register_coco_instances(name, {}, json_file, root)
    register_coco_instances(other, {}, json_file, root)
    with caplog.at_level(logging.INFO):
        records = get_detection_dataset_dicts([name, other])
    # Crowd-only and empty images are dropped.
    assert [r["image_id"] for r in records] == [1, 1]
    assert "4 images" in caplog.text
    assert "3 categories" in caplog.text
    assert len(get_detection_dataset_dicts(name, filter_empty=False)) == 3
    with pytest.raises(AssertionError):
        get_detection_dataset_dicts([])
    third = name + "_c"
    DatasetCatalog.register(third, lambda: DatasetCatalog.get(name))
    MetadataCatalog.get(third).thing_classes = ["other"]
    with pytest.raises(ValueError, match="thing_classes"):
        get_detection_dataset_dicts([name, third])
