"""The shapes data set: the same everywhere, true to its annotations, complete or not there."""

import functools
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tokendetr.data.shapes import CATEGORIES, ShapesSpec, ensure_shapes, make_scene, register_shapes
from tokendetr.data.shapes import build as build_module
from tokendetr.data.shapes.random import IntegerRandom
from tokendetr.data.shapes.raster import UNITS, Figure, paint, rasterize
from tokendetr.data.validate import validate_coco

SPEC = ShapesSpec(num_train=10, num_val=6, seed=3)
# Of SPEC's annotations. Images, boxes or masks that change need a new ShapesSpec.version and new
# checkpoints, not just new digests here.
GOLDEN = {
    "train": "b5c348d7fd1912a5124c03654d2341dd7b4dffa8f9c65ea37de4db22606a7ec4",
    "val": "e494fb80bb8158f293453932a8b2465f1c0590207a225c1aec2147e2190b345c",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", SPEC, workers=1)


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(IntegerRandom(0, 0, index)) for index in range(160)]


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(root, tmp_path):
    again = ensure_shapes(tmp_path / "again", SPEC, workers=2)
    assert digests(again) == digests(root)
    assert len(digests(root)) == 10 + 6 + 2 + 1


def test_another_seed_gives_other_images(root, tmp_path):
    other = ensure_shapes(tmp_path / "other", ShapesSpec(num_train=1, num_val=1, seed=4), workers=1)
    first = "train/000001.jpg"
    assert (other / first).read_bytes() != (root / first).read_bytes()


def test_annotations_are_those_of_every_machine(root):
    splits = json.loads((root / "summary.json").read_text())["splits"]
    assert {name: split["annotations_sha256"] for name, split in splits.items()} == GOLDEN


def test_the_random_stream_is_fixed():
    # Computed by hand from PCG64's published raw output for SeedSequence((1, 2)).
    raw = np.random.PCG64(np.random.SeedSequence((1, 2))).random_raw(3)
    expected = [10 + int(value >> 32) * 91 // 2**32 for value in raw.tolist()]
    stream = IntegerRandom(1, 2)
    assert [stream.between(10, 100) for _ in range(3)] == expected
    assert IntegerRandom(1, 2).field((3,), 10, 100).tolist() == expected


def test_the_files_are_a_valid_coco_data_set(root):
    for split in ("train", "val"):
        file = root / "annotations" / f"instances_{split}.json"
        validate_coco(str(file), str(root / split), num_classes=12, for_evaluation=True)
        coco = COCO(str(file))
        names = [category["name"] for category in coco.loadCats(coco.getCatIds())]
        assert names == list(CATEGORIES)
        for image in coco.loadImgs(coco.getImgIds()):
            for record in coco.loadAnns(coco.getAnnIds(image["id"])):
                mask_HW = coco.annToMask(record)
                assert mask_HW.shape == (image["height"], image["width"])
                assert mask_HW.sum() == record["area"] > 0
                assert coco_mask.toBbox(record["segmentation"]).tolist() == record["bbox"]


def test_boxes_lie_inside_their_images(scenes):
    for scene in scenes:
        height, width = scene.image_HWC.shape[:2]
        for record in scene.annotations:
            x, y, w, h = record["bbox"]
            assert 0 <= x < x + w <= width
            assert 0 <= y < y + h <= height


def test_sizes_and_contents_vary_as_described(scenes):
    objects = [r for scene in scenes for r in scene.annotations if not r["iscrowd"]]
    areas = np.array([record["area"] for record in objects])
    assert 0.25 < (areas < 32**2).mean() < 0.50
    assert 0.25 < ((areas >= 32**2) & (areas < 96**2)).mean() < 0.60
    assert 0.08 < (areas >= 96**2).mean() < 0.35
    assert {record["category_id"] for record in objects} == set(range(1, 13))
    assert 3 < len(objects) / len(scenes) < 6
    assert any(not scene.annotations for scene in scenes)
    assert any(record["iscrowd"] for scene in scenes for record in scene.annotations)
    shapes = {scene.image_HWC.shape[:2] for scene in scenes}
    assert len(shapes) > 50
    assert all(max(shape) == 256 and min(shape) >= 160 for shape in shapes)
    assert any(h > w for h, w in shapes)
    assert any(w > h for h, w in shapes)


def test_objects_occlude_each_other(scenes):
    def overlapping(scene) -> bool:
        boxes = [r["bbox"] for r in scene.annotations if not r["iscrowd"]]
        return any(
            a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
            for number, a in enumerate(boxes)
            for b in boxes[:number]
        )

    assert 0.3 < np.mean([overlapping(scene) for scene in scenes]) < 0.95


def figure(shape="square", texture="plain", half=30, angle=0, period=12):
    return Figure(
        shape=shape,
        texture=texture,
        half_width=half * UNITS,
        half_height=half * UNITS,
        angle=angle,
        period=period * UNITS,
        colors=((200, 0, 0), (0, 0, 200)),
    )


@pytest.mark.parametrize("angle", [0, 17, 64, 200])
@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("square", 4.0),
        ("disc", np.pi),
        ("triangle", 2.0),
        ("cross", 4 * (2 * 0.375 - 0.375**2)),
    ],
)
def test_outlines_have_the_area_of_geometry(shape, area, angle):
    patch = rasterize(figure(shape, angle=angle))
    covered = (patch.first + patch.second).sum() / 4
    assert covered == pytest.approx(area * 30 * 30, rel=0.02)


def test_textures_are_what_their_names_say():
    plain, striped, checked = (
        rasterize(figure(texture=texture)) for texture in ("plain", "striped", "checked")
    )
    assert not plain.second.any()
    inside = (slice(2, -2), slice(2, -2))
    for patch in (striped, checked):
        assert patch.second[inside].sum() == pytest.approx(patch.first[inside].sum(), rel=0.15)
    assert (striped.second[inside] == striped.second[inside][:1]).all()
    rows = checked.second[inside]
    assert (rows == rows[:1]).mean() < 0.7
    assert not (rows == rows[:, :1]).all()


def test_unknown_shapes_and_textures_are_refused():
    with pytest.raises(ValueError, match="unknown shape 'star'"):
        rasterize(figure("star"))
    with pytest.raises(ValueError, match="unknown texture 'dotted'"):
        rasterize(figure(texture="dotted"))


@pytest.mark.parametrize(("top", "left"), [(-100, 0), (0, -100), (50, 50), (-20, 30), (0, 0)])
def test_painting_outside_and_across_the_border_changes_only_what_is_inside(top, left):
    patch = rasterize(figure(half=15))
    canvas = np.full((40, 40, 3), 50, dtype=np.int32)
    paint(canvas, patch, top, left)
    big = np.full((300, 300, 3), 50, dtype=np.int32)
    paint(big, patch, 120 + top, 120 + left)
    np.testing.assert_array_equal(canvas, big[120:160, 120:160])


def test_an_existing_data_set_is_kept_and_another_one_refused(root, tmp_path):
    before = digests(root)
    assert ensure_shapes(root, SPEC) == root
    assert ensure_shapes(root) == root
    assert digests(root) == before
    with pytest.raises(ValueError, match=r"'num_train': 10.*not.*'num_train': 11.*move or delete"):
        ensure_shapes(root, ShapesSpec(num_train=11, num_val=6, seed=3))
    (tmp_path / "foreign").mkdir()
    with pytest.raises(ValueError, match=r"has no summary\.json.*move or delete"):
        ensure_shapes(tmp_path / "foreign")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"spec": 3}', '{"spec": {"x": 1}}', "\udce9"])
def test_a_damaged_summary_is_named(tmp_path, text):
    (tmp_path / "summary.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"summary\.json is damaged.*move or delete"):
        ensure_shapes(tmp_path)


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="num_val must not be negative, got -1"):
        ShapesSpec(num_val=-1)


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    calls = []

    def fail_later(random):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return make_scene(random)

    monkeypatch.setattr(build_module, "make_scene", fail_later)
    with pytest.raises(KeyboardInterrupt):
        ensure_shapes(tmp_path / "shapes", SPEC, workers=1)
    assert not list(tmp_path.iterdir())


def test_a_worker_that_is_killed_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "make_scene", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(BrokenProcessPool):
        ensure_shapes(tmp_path / "shapes", SPEC, workers=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_ends_it_and_leaves_nothing_behind(tmp_path, number):
    command = [sys.executable, "-m", "tokendetr", "make-shapes", "--root", tmp_path / "shapes"]
    program = subprocess.Popen(
        [*command, "--workers", "2"], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    # Python ignores an interrupt inside fork's hooks; after this many images both workers run.
    while program.poll() is None and len(list(tmp_path.glob(".shapes-*/train/*.jpg"))) < 50:
        time.sleep(0.05)
    # A terminal, `timeout` and batch systems send it to all of its processes.
    os.killpg(program.pid, number)
    assert "Traceback" not in program.communicate()[1]
    assert program.returncode == 128 + number
    assert not list(tmp_path.iterdir())


def test_processes_that_start_together_make_it_once(root, tmp_path):
    context = multiprocessing.get_context("spawn")
    target = tmp_path / "shapes"
    processes = [context.Process(target=ensure_shapes, args=(target, SPEC, 1)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert digests(target) == digests(root)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


@pytest.fixture
def clean_catalog():
    yield
    register_shapes()  # back to the root of the environment


def test_registered_names_read_the_files(root, clean_catalog):
    register_shapes(root)
    records = DatasetCatalog.get("shapes_val")
    assert len(records) == 6
    assert all(Path(record["file_name"]).is_file() for record in records)
    metadata = MetadataCatalog.get("shapes_val")
    assert metadata.thing_classes == list(CATEGORIES)
    classes = {a["category_id"] for record in records for a in record["annotations"]}
    assert classes <= set(range(12))
    register_shapes(root)
    assert DatasetCatalog.get("shapes_val") == records


def test_the_names_follow_the_environment(tmp_path, monkeypatch, clean_catalog):
    for name in ("one", "two"):
        folder = tmp_path / name
        monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
        ensure_shapes(folder / "shapes", ShapesSpec(num_train=1, num_val=len(name) - 1), workers=1)
        register_shapes()
        assert MetadataCatalog.get("shapes_val").image_root == str(folder / "shapes" / "val")
        assert len(DatasetCatalog.get("shapes_val")) == 2


def test_missing_files_are_drawn_when_first_read(tmp_path, monkeypatch, clean_catalog):
    small = functools.partial(ShapesSpec, num_train=2, num_val=1)
    monkeypatch.setattr(build_module, "ShapesSpec", small)
    register_shapes(tmp_path / "shapes")
    assert not (tmp_path / "shapes").exists()
    assert len(DatasetCatalog.get("shapes_train")) == 2
    assert (tmp_path / "shapes" / "summary.json").is_file()
