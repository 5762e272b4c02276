"""The analysis of results against pycocotools and plain counting."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.train import toy
from tokendetr.cli import analyze
from tokendetr.errors import DatasetError
from tokendetr.evaluation.error_analysis import analyze_results, compare_results
from tokendetr.report import figures

pytest.importorskip("hotcoco", reason="hotcoco analyzes the results")


@pytest.mark.parametrize("extra", [{"segmentation": 5}, {"area": "x"}, {"file_name": "\ud800"}])
def test_other_fields_of_results_may_be_anything(files, tmp_path, extra):
    annotations, path = files
    rows = json.loads(path.read_text())
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps([{**row, **extra} for row in rows]))
    expected = analyze_results(annotations, path).metrics
    assert analyze_results(annotations, changed).metrics == expected


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Annotations, and results: jittered truth under right and wrong names, copies and strays."""
    root = tmp_path_factory.mktemp("analysis")
    annotations = toy.write_dataset(root, num_images=14, seed=3)
    data = json.loads(annotations.read_text())
    rng = np.random.default_rng(0)
    results = []
    for annotation in data["annotations"]:
        for _ in range(int(rng.integers(0, 3))):
            box = np.array(annotation["bbox"]) + rng.normal(0, 1.5, 4)
            box[2:] = np.maximum(box[2:], 1)
            category = annotation["category_id"] if rng.random() < 0.8 else 1 + int(rng.integers(3))
            results.append({"image_id": annotation["image_id"], "category_id": category,
                            "bbox": box.tolist(), "score": float(rng.random())})  # fmt: skip
    for image in data["images"]:
        results.append({"image_id": image["id"], "category_id": 2, "bbox": [0, 0, 5, 5],
                        "score": float(rng.random())})  # fmt: skip
    path = root / "results.json"
    path.write_text(json.dumps(results))
    return annotations, path


@pytest.fixture(scope="module")
def reference(files):
    truth = COCO(str(files[0]))
    found = COCOeval(truth, truth.loadRes(str(files[1])), "bbox")
    found.evaluate()
    found.accumulate()
    found.summarize()
    return found


def test_ap_is_pycocotools(files, reference):
    metrics = analyze_results(*files).metrics
    for name, value in zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), reference.stats,
                           strict=False):  # fmt: skip
        assert metrics[name] == pytest.approx(100 * value if value >= 0 else -1, abs=1e-9), name
    assert metrics["AR100"] == pytest.approx(100 * reference.stats[8], abs=1e-9)


def test_class_rows_are_pycocotools_by_class_and_size(files, reference):
    precision = reference.eval["precision"]  # IoU, recall, class, size, detections
    for index, row in enumerate(analyze_results(*files).classes):
        for size, name in ((0, "AP"), (1, "APs"), (2, "APm")):
            values = precision[:, :, index, size, 2]
            values = values[values > -1]
            wanted = 100 * values.mean() if values.size else -1
            assert row[name] == pytest.approx(wanted, abs=1e-9), (row["name"], name)


@pytest.mark.parametrize("rename", [str, lambda number: -number, lambda number: 10**12 + number])
def test_ids_may_be_text_negative_or_huge(files, tmp_path, rename):
    wanted = analyze_results(*files)
    data, rows = (json.loads(path.read_text()) for path in files)
    for record in [*data["images"], *data["categories"]]:
        record["id"] = rename(record["id"])
    for record in [*data["annotations"], *rows]:
        record["image_id"] = rename(record["image_id"])
        record["category_id"] = rename(record["category_id"])
    renamed = [tmp_path / "annotations.json", tmp_path / "results.json"]
    for path, content in zip(renamed, (data, rows), strict=True):
        path.write_text(json.dumps(content))
    found = analyze_results(*renamed)
    assert found.metrics == pytest.approx(wanted.metrics)
    by_name = {row["name"]: row for row in found.classes}
    for row in wanted.classes:
        assert by_name[row["name"]] == pytest.approx({**row, "id": rename(row["id"])})
    assert found.boxes == {rename(number): boxes for number, boxes in wanted.boxes.items()}
    assert compare_results(renamed[0], renamed[1], renamed[1], resamples=10).classes.keys() == (
        by_name.keys()
    )


def test_the_matrix_of_very_many_classes_joins_the_rarest(files):
    one = analyze_results(*files)
    names = [f"class {number}" for number in range(150)]
    rows = [{"name": name, "boxes": number} for number, name in enumerate(names)]
    confusion = np.arange(151 * 151).reshape(151, 151)
    many = replace(one, classes=rows, confusion=confusion.tolist())
    shown, counts = figures._joined(many)
    assert shown == [*names[52:], "52 other classes", "background"]
    assert np.sum(counts) == confusion.sum()
    assert counts[-1][-2] == confusion[-1, :52].sum() and counts[0][0] == confusion[52, 52]
    assert figures._joined(one) == ([*(row["name"] for row in one.classes), "background"],
                                    one.confusion)  # fmt: skip


def test_images_without_labels_cannot_be_analyzed(files, tmp_path):
    data = json.loads(files[0].read_text())
    del data["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(data))
    with pytest.raises(DatasetError, match=r"test.json has no 'annotations'"):
        analyze_results(tmp_path / "test.json", files[1])


def counted(files, category: int, threshold: float) -> tuple[int, int, int]:
    """Right and wrong detections and boxes of a class at IoU 0.5, matched by plain loops."""
    data, rows = (json.loads(path.read_text()) for path in files)
    right = wrong = boxes = 0
    for image in data["images"]:
        truth = [a["bbox"] for a in data["annotations"]
                 if a["image_id"] == image["id"] and a["category_id"] == category]  # fmt: skip
        boxes += len(truth)
        taken: set[int] = set()
        chosen = [r for r in rows if r["image_id"] == image["id"]
                  and r["category_id"] == category and r["score"] >= threshold]  # fmt: skip
        for row in sorted(chosen, key=lambda r: -r["score"]):
            overlaps = [(iou(row["bbox"], box), n) for n, box in enumerate(truth) if n not in taken]
            best, number = max(overlaps, default=(0.0, -1))
            right += best >= 0.5
            wrong += best < 0.5
            taken |= {number} if best >= 0.5 else set()
    return right, wrong, boxes


def iou(a, b) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inner = max(0.0, width) * max(0.0, height)
    return inner / (a[2] * a[3] + b[2] * b[3] - inner)


def test_the_best_threshold_is_the_best_of_all_scores(files):
    rows = json.loads(files[1].read_text())
    analysis = analyze_results(*files)
    for row in analysis.classes:
        scores = {r["score"] for r in rows if r["category_id"] == row["id"]}
        f1 = {}
        for score in scores:
            right, wrong, boxes = counted(files, row["id"], score)
            f1[score] = 2 * right / (right + wrong + boxes)
        assert row["f1"] == pytest.approx(max(f1.values()))
        assert f1[row["threshold"]] == pytest.approx(row["f1"])
        right, wrong, boxes = counted(files, row["id"], row["threshold"])
        assert row["precision"] == pytest.approx(right / (right + wrong))
        assert row["recall"] == pytest.approx(right / boxes)
        assert row["boxes"] == boxes
        curve = analysis.curves[row["name"]]
        assert max(curve["f1"]) == pytest.approx(row["f1"], abs=1e-4)


def test_images_boxes_and_confusions_count_the_same_detections(files):
    analysis = analyze_results(*files)
    found = sum(counted(files, row["id"], row["threshold"])[0] for row in analysis.classes)
    wrong = sum(counted(files, row["id"], row["threshold"])[1] for row in analysis.classes)
    assert sum(row["found"] for row in analysis.images) == found
    assert sum(row["wrong"] for row in analysis.images) == wrong
    shown = [box for boxes in analysis.boxes.values() for box in boxes["detections"]]
    assert len(shown) == found + wrong
    assert sum(box["right"] for box in shown) == found
    missed = [box for boxes in analysis.boxes.values() for box in boxes["truth"]]
    assert sum(not box["right"] for box in missed) == analysis.num_boxes - found
    # Every box is in one row, every detection in one column.
    matrix = np.array(analysis.confusion)
    assert matrix[:-1].sum() == analysis.num_boxes
    assert matrix[:, :-1].sum() == found + wrong
    f1 = [row["f1"] for row in analysis.images]
    assert f1 == sorted(f1)


def test_results_that_are_the_truth_are_right_in_everything(files, tmp_path):
    data = json.loads(files[0].read_text())
    rows = [{**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9}
            for a in data["annotations"]]  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(rows))
    analysis = analyze_results(files[0], tmp_path / "r.json")
    assert analysis.metrics["AP"] == pytest.approx(100)
    assert all(kind["count"] == 0 for kind in analysis.errors.values())
    assert all(row["threshold"] == 0.9 and row["f1"] == 1 for row in analysis.classes)
    gain = compare_results(files[0], files[1], tmp_path / "r.json", resamples=100).metrics["AP"]
    assert gain["difference"] == pytest.approx(100 - gain["first"])
    assert 0 < gain["lower"] < gain["difference"] < gain["upper"]
    assert gain["better"] == 1


def test_images_without_detections_are_said(files, tmp_path, capsys):
    """As after an evaluation of the first images alone."""
    annotations, results = files
    first = {image["id"] for image in json.loads(annotations.read_text())["images"][:5]}
    part = tmp_path / "part.json"
    rows = json.loads(results.read_text())
    part.write_text(json.dumps([row for row in rows if row["image_id"] in first]))
    out = tmp_path / "out"
    for path, count in ((part, 9), (results, 0)):
        analyze.main(["--results", str(path), "--annotations", str(annotations),
                      "--output", str(out)])  # fmt: skip
        said = f"{count} of 14 images have no detection" in capsys.readouterr().out
        shown = "Without any detection" in (out / "index.html").read_text()
        assert said == shown == bool(count)
        numbers = json.loads((out / "analysis.json").read_text())
        assert numbers["num_images_without_detections"] == count


def test_the_command_writes_a_page_a_table_and_numbers(files, tmp_path, capsys):
    out = tmp_path / "out"
    analyze.main(["--results", str(files[1]), "--annotations", str(files[0]), "--output", str(out),
                  "--images", str(files[0].parent / "images"), "--compare", str(files[1]),
                  "--resamples", "20"])  # fmt: skip
    assert "+0.0 (+0.0 to +0.0)" in capsys.readouterr().out
    numbers = json.loads((out / "analysis.json").read_text())
    assert numbers["comparison"]["metrics"]["AP"]["difference"] == 0
    assert len((out / "classes.csv").read_text().splitlines()) == 1 + toy.NUM_CLASSES
    assert "data:image/jpeg" in (out / "index.html").read_text()


def sizes(images: Any) -> dict[str, tuple[int, int]]:
    return {Path(i.get("name") or i["file_name"]).name: (i["width"], i["height"]) for i in images}


def test_boxes_fit_images_of_another_size_and_missing_images_are_left_out(files, tmp_path, caplog):
    annotations, results = files
    arguments = ["--results", str(results), "--annotations", str(annotations)]
    arguments += ["--output", str(tmp_path / "out"), "--images", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"has none of the images of .*, such as"):
        analyze.main(arguments)
    first, second = json.loads(annotations.read_text())["images"][:2]
    for image in (first, second):
        Image.new("RGB", (2 * image["width"], 2 * image["height"])).save(
            tmp_path / image["file_name"]
        )
    analyze.main(arguments)
    assert "12 images are not in" in caplog.text
    page = (tmp_path / "out" / "index.html").read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert data is not None
    assert sizes(json.loads(data[1])["images"].values()) == sizes((first, second))


def test_what_no_box_measures_is_no_number(files, tmp_path, capsys):
    annotations, results = files
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps(json.loads(annotations.read_text()) | {"annotations": []}))
    analyze.main(["--results", str(results), "--annotations", str(empty), "--compare", str(results),
                  "--output", str(tmp_path / "out"), "--resamples", "2"])  # fmt: skip
    text = capsys.readouterr().out
    assert "AP -;" in text and "AP - against -" in text and "-1" not in text
    compared = json.loads((tmp_path / "out" / "analysis.json").read_text())["comparison"]
    assert {row["first"] for row in compared["metrics"].values()} <= {-1, 0}
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        compare_results(annotations, results, results, resamples=0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("{", "not readable JSON"),
        ('{"a": 1}', "holds a dict"),
        ('[{"image_id": 1}]', "record 0 has no bbox, category_id, score"),
        ('[{"image_id": 1, "category_id": 9, "bbox": [0,0,1,1], "score": 1}]', "category 9"),
        ('[{"image_id": 99, "category_id": 1, "bbox": [0,0,1,1], "score": 1}]', "image 99"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0,0,1,NaN], "score": 1}]', "finite"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0,0,1,1], "score": 17.5}]', "not logits"),
    ],
)
def test_results_that_cannot_be_used_are_named(files, tmp_path, rows, message):
    path = tmp_path / "bad.json"
    path.write_text(rows)
    with pytest.raises(DatasetError, match=message) as caught:
        analyze_results(files[0], path)
    assert "bad.json" in str(caught.value)
