"""The command that checks data sets, and the documented data set of one's own."""

import codecs
import json
import re
import shutil
from pathlib import Path

import pytest
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from tests.source_tree import ROOT
from tests.train import toy
from tokendetr.cli import check_dataset
from tokendetr.config.load import load_config
from tokendetr.data import coco_check
from tokendetr.errors import DatasetError


@pytest.fixture
def fruit(tmp_path):
    toy.write_dataset(tmp_path)
    return tmp_path


def edit(root, change):
    path = root / "annotations.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def run(capsys, root, *arguments) -> tuple[str, str]:
    """Return the command's output, and the error it exits with ("" if it succeeds)."""
    files = ["--json", str(root / "annotations.json"), "--images", str(root / "images")]
    error = ""
    try:
        check_dataset.main([*files, *arguments])
    except SystemExit as stop:
        error = str(stop.code)
    return capsys.readouterr().out, error


def test_a_good_data_set_is_described(fruit, capsys):
    printed, error = run(capsys, fruit, "--num-classes", "3", "--open-images")
    assert error == ""
    assert re.search(r"10 images\n\s+1 images without boxes\n", printed)
    assert re.search(r"3 categories", printed)
    assert "look at" not in printed


def drop_what_evaluations_read(data):
    del data["annotations"][0]["area"], data["annotations"][1]["iscrowd"]


def test_what_a_real_detectron2_does_not_fill_in_is_refused_and_written(fruit, capsys, monkeypatch):
    edit(fruit, drop_what_evaluations_read)
    monkeypatch.setattr(coco_check, "is_stand_in", lambda name: False)
    _, error = run(capsys, fruit)
    assert "1 annotations without area" in error and "1 annotations without iscrowd" in error
    assert "--write NEW_FILE" in error
    given = (fruit / "annotations.json").read_bytes()
    printed, error = run(capsys, fruit, "--write", str(fruit / "complete.json"))
    assert error == "" and "complete.json: no faults" in printed
    assert (fruit / "annotations.json").read_bytes() == given
    complete = json.loads((fruit / "complete.json").read_text())["annotations"]
    assert complete[0]["area"] == complete[0]["bbox"][2] * complete[0]["bbox"][3]
    assert complete[1]["iscrowd"] == 0
    (fruit / "annotations.json").write_bytes(
        codecs.BOM_UTF8 + (fruit / "complete.json").read_bytes()
    )
    assert "byte-order mark" in run(capsys, fruit)[1]


def test_training_alone_needs_no_area(fruit, monkeypatch):
    edit(fruit, drop_what_evaluations_read)
    monkeypatch.setattr(coco_check, "is_stand_in", lambda name: False)
    files = str(fruit / "annotations.json"), str(fruit / "images")
    coco_check.validate_coco(*files, for_training=True)
    with pytest.raises(DatasetError, match="without area"):
        coco_check.validate_coco(*files, for_evaluation=True)


def copy_box(data):
    data["annotations"].append({**data["annotations"][0], "id": 999})


def shift_categories(data):
    for part, key in ((data["categories"], "id"), (data["annotations"], "category_id")):
        for record in part:
            record[key] += 10


def add_category(data):
    data["categories"].append({"id": 4, "name": "unused"})


def make_all_crowds(data):
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 1


def make_crowd(data):
    data["annotations"][0]["iscrowd"] = 1


def thin_box(data):
    data["annotations"][0]["bbox"][2] = 0.2


def keep_one_box(data):
    del data["annotations"][1:]


def repeat_file(data):
    data["images"][1]["file_name"] = data["images"][0]["file_name"]


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (copy_box, r"1 boxes that repeat another(.|\n)*more than once in 1 image \(1\)"),
        (shift_categories, r"ids are not 1 to 3: they are mapped to classes 0 to 2"),
        (add_category, r"1 category \(unused\) without boxes"),
        (make_crowd, r"1 crowds"),
        (thin_box, r"1 annotation \(1\): boxes less than 1 pixel wide"),
        (repeat_file, r"1 file \(000\.png\) more than once"),
        (lambda data: data["annotations"].clear(), r"there are no annotations"),
        (make_all_crowds, r"there are crowds alone"),
        (
            lambda data: data["annotations"].__delitem__(slice(2, None)),
            r"most images have no boxes",
        ),
    ],
)
def test_what_loaders_cope_with_is_pointed_out(fruit, capsys, change, advice):
    edit(fruit, change)
    printed, error = run(capsys, fruit)
    assert error == ""
    assert re.search(advice, printed), printed


def test_too_many_classes_of_the_model_are_pointed_out(fruit, capsys):
    printed, error = run(capsys, fruit, "--num-classes", "80")
    assert error == ""
    assert "set model.num_classes=3" in printed


def invert_box(data):
    data["annotations"][0]["bbox"][3] = -4


def remove_image(root):
    (root / "images" / "002.png").unlink()


def truncate_image(root):
    path = root / "images" / "002.png"
    path.write_bytes(path.read_bytes()[:200])


def resize_image(root):
    Image.new("RGB", (9, 8)).save(root / "images" / "002.png")


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (lambda root: edit(root, invert_box), (), r"annotation id 1 .*inverted"),
        (lambda root: None, ("--num-classes", "2"), r"set model\.num_classes=3"),
        (remove_image, (), r"002\.png does not exist"),
        (truncate_image, ("--open-images",), r"image id 3 \(002\.png\) cannot be read"),
        (resize_image, ("--open-images",), r"has 9 x 8 pixels, the annotations say"),
        (lambda root: (root / "annotations.json").unlink(), (), r"do not exist"),
        (lambda root: (root / "annotations.json").write_text("{"), (), r"not readable JSON"),
    ],
)
def test_faults_are_errors(fruit, capsys, damage, arguments, message):
    damage(fruit)
    printed, error = run(capsys, fruit, *arguments)
    assert re.search(message, error), error
    assert "no faults" not in printed


def documented_config(folder: Path) -> Path:
    """Return the documentation's config of a custom data set, beside its base config."""
    text = (ROOT / "docs" / "train.md").read_text().split("## A data set of your own")[1]
    code = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL).group(1)
    lines = [line for line in code.splitlines() if line and not line.startswith(("from", "import"))]
    assert len(lines) <= 5, "a custom data set takes five lines"
    for part in ("projects/common", "projects/dino/configs"):
        shutil.copytree(ROOT / part, folder / part)
    path = folder / "projects" / "dino" / "configs" / "dino-resnet" / "fruit_12ep.py"
    path.write_text(code)
    return path


@pytest.fixture
def documented(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "datasets" / "fruit"
    toy.write_dataset(made)
    edit(made, lambda data: data["categories"].extend({"id": i, "name": f"{i}"} for i in (4, 5)))
    shutil.copy(made / "annotations.json", made / "train.json")
    shutil.copy(made / "annotations.json", made / "val.json")
    yield documented_config(tmp_path)
    for name in ("fruit_train", "fruit_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_documented_data_set_of_ones_own_is_checked_by_its_config(documented, capsys):
    cfg = load_config(str(documented))
    assert cfg.model.criterion.num_classes == 5
    assert len(instantiate(cfg.dataloader.train.dataset)) == 9, "one image has no boxes"
    check_dataset.main(["--config-file", str(documented)])
    printed = capsys.readouterr().out
    assert "fruit_train: no faults" in printed
    assert "fruit_val: no faults" in printed

    val = Path("datasets/fruit/val.json")
    data = json.loads(val.read_text())
    data["categories"][0]["name"] = "other"
    val.write_text(json.dumps(data))
    with pytest.raises(SystemExit, match="class 0 is 'class0' in fruit_train but 'other' in"):
        check_dataset.main(["--config-file", str(documented)])
    data["categories"][0]["name"] = "class0"
    data["categories"].pop()
    val.write_text(json.dumps(data))
    with pytest.raises(SystemExit, match="fruit_train has 5 categories, fruit_val 4"):
        check_dataset.main(["--config-file", str(documented)])


def test_names_that_are_not_registered_and_missing_arguments(tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "dataloader = dict(test=dict(dataset=dict(names='coco_2017_vall')))\nmodel = dict()\n"
    )
    with pytest.raises(SystemExit, match="coco_2017_val"):
        check_dataset.main(["--config-file", str(config)])
    with pytest.raises(SystemExit):
        check_dataset.main(["--json", "a.json"])
    assert "--images" in capsys.readouterr().err


def test_images_without_labels_are_drawn_too(fruit, capsys):
    edit(fruit, lambda data: data.pop("annotations"))
    _, error = run(capsys, fruit, "--pictures", str(fruit / "out"))
    assert error == "" and (fruit / "out" / "annotations" / "survey.png").is_file()


def test_drawings_show_the_boxes_and_sample_images(fruit, capsys):
    printed, error = run(capsys, fruit, "--pictures", str(fruit / "out"))
    assert error == ""
    assert str(fruit / "out" / "annotations") in printed
    files = sorted(path.name for path in (fruit / "out" / "annotations").iterdir())
    assert len([name for name in files if name.startswith("sample_")]) == 10
    with Image.open(fruit / "out" / "annotations" / "survey.png") as picture:
        assert len(set(picture.convert("L").resize((60, 40)).tobytes())) > 10  # charts, not a blank
