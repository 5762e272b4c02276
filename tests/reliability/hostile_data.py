"""Mutated annotations, damaged pictures and hostile file names.

The operators below are frozen: what they make is what the figures are about.
"""
# Over 350 lines: the operators, which are frozen together, with what they are applied to.

import contextlib
import copy
import io
import json
import math
import os
import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from detrex.data import DetrDatasetMapper
from PIL import Image

from tests.reliability.mutations import damaged
from tokendetr.compat.stand_ins import is_stand_in
from tokendetr.data.coco_check import validate_coco
from tokendetr.data.survey import check_image_files, survey_coco
from tokendetr.errors import DatasetError
from tokendetr.evaluation.fast_coco import FastCOCOEvaluator

__all__ = ["HOSTILE_NAMES", "hostile_names", "mutated_annotations", "mutated_pictures"]

MUTANTS_PER_CASE = 100
_SIZE = (96, 80)  # width, height


def write_data(folder: Path, rng: random.Random) -> dict[str, Any]:
    """A sound data set of four pictures."""
    (folder / "img").mkdir(exist_ok=True)
    images, annotations = [], []
    for number in range(1, 5):
        pixels = np.random.default_rng(number).integers(0, 255, (_SIZE[1], _SIZE[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / "img" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 80})
        for _ in range(3):
            w, h = rng.randrange(8, 30), rng.randrange(8, 30)
            x, y = rng.randrange(96 - w), rng.randrange(80 - h)
            annotations.append(
                dict(id=len(annotations) + 1, image_id=number, category_id=rng.choice((1, 2, 3)),
                     bbox=[x, y, w, h], area=w * h, iscrowd=0,
                     segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]])
            )  # fmt: skip
    categories = [{"id": i, "name": f"block{i}"} for i in (1, 2, 3)]
    return {"images": images, "annotations": annotations, "categories": categories}


# --------------------------------------------------------------------------- annotations

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 99, 0.5, 1.0, 1e300, -1e300, float("nan"), float("inf"),
    10**30, "", "1", "x", "a\0b", [], [1], [[]], [1, 2, 3, 4], [0, 0, 5, 5], [-50, 0, 5, 5],
    [0, 0, 0, 0], [1, 1, -5, 5], [[1, 2, 3, 4, 5, 6]], {}, {"a": 1},
    {"counts": "0", "size": [1, 1]},
)  # fmt: skip
_FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation",
                    "keypoints", "ignore"),
    "categories": ("id", "name", "supercategory"),
}  # fmt: skip


def _set_field(data: dict[str, Any], rng: random.Random) -> None:
    part = rng.choice(sorted(_FIELDS))
    rng.choice(data[part])[rng.choice(_FIELDS[part])] = copy.deepcopy(rng.choice(_VALUES))


def _remove_field(data: dict[str, Any], rng: random.Random) -> None:
    part = rng.choice(sorted(_FIELDS))
    rng.choice(data[part]).pop(rng.choice(_FIELDS[part]), None)


def _remove_field_everywhere(data: dict[str, Any], rng: random.Random) -> None:
    field = rng.choice(("area", "iscrowd", "segmentation"))
    for annotation in data["annotations"]:
        annotation.pop(field, None)


def _retype_ids(data: dict[str, Any], rng: random.Random) -> None:
    part, reference = rng.choice((("images", "image_id"), ("categories", "category_id")))
    kind = rng.choice((float, str, lambda value: value * 7 + 3))
    for record in data[part]:
        record["id"] = kind(record["id"])
    for annotation in data["annotations"]:
        annotation[reference] = kind(annotation[reference])


def _repeat_record(data: dict[str, Any], rng: random.Random) -> None:
    part = rng.choice(sorted(_FIELDS))
    record = copy.deepcopy(rng.choice(data[part]))
    if rng.random() < 0.7:
        record["id"] = 1000 + rng.randrange(1000)
    data[part].append(record)


def _remove_record(data: dict[str, Any], rng: random.Random) -> None:
    part = rng.choice(("annotations", "annotations", "images", "categories"))
    data[part].pop(rng.randrange(len(data[part])))


def _move_box(data: dict[str, Any], rng: random.Random) -> None:
    annotation = rng.choice(data["annotations"])
    if isinstance(annotation.get("bbox"), list) and annotation["bbox"]:
        index = rng.randrange(len(annotation["bbox"]))
        annotation["bbox"][index] = rng.choice((0, 1, -1, 0.25, 95.5, 40, -30, 500, 1e-9))


def _add_noise(data: dict[str, Any], rng: random.Random) -> None:
    rng.choice(data["annotations"])["attributes"] = {"note": rng.choice(_VALUES)}
    data["licenses"] = rng.choice((None, [], {}, "MIT"))


def _replace_part(data: dict[str, Any], rng: random.Random) -> None:
    part = rng.choice(sorted(_FIELDS))
    data[part] = rng.choice((None, {}, [], [5], [[]], "x"))


_OPERATORS: tuple[tuple[Callable[[dict[str, Any], random.Random], None], int], ...] = (
    (_set_field, 6),
    (_remove_field, 3),
    (_remove_field_everywhere, 3),
    (_retype_ids, 2),
    (_repeat_record, 2),
    (_remove_record, 2),
    (_move_box, 3),
    (_add_noise, 2),
    (_replace_part, 1),
)


def mutated_annotations(seed: int, folder: Path) -> int:
    """Check mutants and use them; returns their number.

    A mutant that the check accepts must load, be mapped for a whole epoch and evaluate, each box at
    its place. One that it refuses must be refused by one of these with a typed error, or lose or
    change boxes on the way.

    Raises:
        AssertionError: the check and the use of a mutant differ; or fewer than 30 % of the mutants
            are accepted, or fewer than 30 % refused, so that they prove too little.
    """
    rng = random.Random(seed)
    accepted = 0
    for number in range(MUTANTS_PER_CASE):
        data = write_data(folder, rng)
        for _ in range(rng.choice((1, 1, 2))):
            operator = rng.choices(*zip(*_OPERATORS, strict=True))[0]
            with contextlib.suppress(AttributeError, TypeError, IndexError, KeyError, ValueError):
                operator(data, rng)  # a second mutation may find nothing left to change
        path = folder / "a.json"
        path.write_text(json.dumps(data))
        fault = _checked(path, folder / "img")
        trouble = _used(path, folder / "img", data)
        accepted += not fault
        assert bool(fault) == bool(trouble), (
            f"mutant {number}: the check says {fault.splitlines()[1:2] or 'nothing'}, its use "
            f"{trouble or 'nothing'}"
        )
    share = accepted / MUTANTS_PER_CASE
    assert 0.3 <= share <= 0.7, f"{share:.0%} of the mutants are accepted: they prove too little"
    return MUTANTS_PER_CASE


def _checked(path: Path, images: Path) -> str:
    try:
        validate_coco(str(path), str(images), for_training=True, for_evaluation=True)
        check_image_files(str(path), str(images))
        survey_coco(str(path))
    except DatasetError as error:
        assert "a.json" in str(error)
        return str(error)
    return ""


def _used(path: Path, images: Path, data: Any) -> str:
    """What goes wrong in loading, an epoch and two evaluations, or ""."""
    name = f"mutant_{uuid.uuid4().hex}"
    register_coco_instances(name, {}, str(path), str(images))
    try:
        records = get_detection_dataset_dicts(name, filter_empty=False)
        get_detection_dataset_dicts(name, filter_empty=True)
        epoch = _epoch(records)
        evaluations = [
            _evaluate(name, kind, records) for kind in (COCOEvaluator, FastCOCOEvaluator)
        ]
    except Exception as error:
        # A real detectron2 has no better words for some faults than what Python says.
        typed = isinstance(error, (ValueError, OSError)) or "No valid data found" in str(error)
        if is_stand_in("detectron2") and not typed:
            raise
        return f"{type(error).__name__}: {error}"
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    same = len(set(evaluations)) == 1 or not is_stand_in("detectron2")  # which merges equal names
    assert same, f"the evaluations differ: {evaluations}"
    return epoch or _lost(records, data)


def _epoch(records: list[dict[str, Any]]) -> str:
    resize = [T.ResizeShortestEdge((40,), 96, "choice")]
    mapper = DetrDatasetMapper(augmentation=resize, augmentation_with_crop=None)
    for record in records:
        sample = mapper(record)
        boxes = sample["instances"].gt_boxes.tensor
        if not bool(torch.isfinite(boxes).all()):
            return "a box is not finite"
    return ""


def _evaluate(name: str, kind: Any, records: list[dict[str, Any]]) -> str:
    evaluator = kind(name)
    evaluator.reset()
    for record in records:
        found = Instances((record["height"], record["width"]))
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in record["annotations"])]
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.linspace(1, 0.5, len(boxes))
        classes = [a["category_id"] for a in record["annotations"]]
        found.pred_classes = torch.tensor(classes, dtype=torch.long)
        evaluator.process([record], [{"instances": found}])
    with contextlib.redirect_stdout(io.StringIO()):
        results = evaluator.evaluate()["bbox"]
    return json.dumps({k: "nan" if math.isnan(v) else round(v, 9) for k, v in results.items()})


def _lost(records: list[dict[str, Any]], data: dict[str, Any]) -> str:
    """Boxes of the file that are not where the file says, or results that overwrite each other."""
    loaded = sum(len(record["annotations"]) for record in records)
    if loaded != len(data.get("annotations", [])):
        return f"{len(data['annotations']) - loaded} annotations are lost"
    for record in records:
        for x, y, w, h in (annotation["bbox"] for annotation in record["annotations"]):
            if min(x, y) < -2 or x + w > record["width"] + 2 or y + h > record["height"] + 2:
                return "a box is cut"
    names = [str(category.get("name")) for category in data["categories"]]
    return "two classes have one name" if len(set(names)) < len(names) else ""


# ------------------------------------------------------------------------------ pictures


def mutated_pictures(seed: int, folder: Path) -> int:
    """Read sound and damaged pictures of every mode and turn by the check and by the loader.

    Raises:
        AssertionError: the two differ, an error is not an OSError that names the file, or a sound
            picture of 8 or 16 bits is not read in its own range.
    """
    rng = random.Random(seed)
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 36, 3), np.uint8)
    rgb = Image.fromarray(pixels)
    files = {f"{mode}.png": rgb.convert(mode) for mode in ("RGB", "L", "LA", "P", "RGBA", "1")}
    files |= {"CMYK.jpg": rgb.convert("CMYK"), "plain.jpg": rgb, "plain.bmp": rgb, "p.webp": rgb}
    deep = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    files |= {
        "deep.png": Image.fromarray(deep),
        "float.tiff": Image.fromarray(deep / np.float32(9)),
    }
    count = 0
    for name, image in files.items():
        path = folder / name
        exif = Image.Exif()
        exif[0x0112] = rng.randrange(1, 9)
        image.save(path, **({"exif": exif} if name.endswith("jpg") else {}))
        if name == "deep.png":
            read = utils.read_image(str(path), format="RGB")[..., 0]
            assert np.array_equal(read, np.asarray(rgb.convert("L")))
        content = path.read_bytes()
        for mutant in [content, *(damaged(content, rng) for _ in range(4))]:
            path.write_bytes(mutant)
            _read_by_both(folder, path)
            count += 1
    return count


def _read_by_both(folder: Path, path: Path) -> None:
    record: dict[str, Any] = {"id": 1, "file_name": path.name, "width": 36, "height": 24}
    try:
        array = utils.read_image(str(path), format="RGB")
        assert array.dtype == np.uint8 and array.ndim == 3
        record["height"], record["width"] = array.shape[:2]
    except OSError as error:
        assert str(path) in str(error), f"the message does not name {path}: {error}"
        array = None
    data = {"images": [record], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    (folder / "a.json").write_text(json.dumps(data))
    try:
        check_image_files(str(folder / "a.json"), str(folder))
        accepted = True
    except DatasetError as error:
        assert path.name in str(error)
        accepted = False
    assert accepted == (array is not None), f"{path}: the check and the loader differ"


# ---------------------------------------------------------------------------- file names

HOSTILE_NAMES = (
    "../outside.png", "../../etc/hostname", "/etc/hostname", "/dev/zero", "/proc/self/environ",
    "sub/../../outside.png", "./../outside.png", "..", ".", "", "/", "//etc/hostname",
    "..\\outside.png",
    "sub\\..\\..\\outside.png", "link.png", "folder_link/outside.png", "dev.png", "loop.png", "sub",
    "a\0b.png", "outside.png\0.png", "file:///etc/hostname", "~/a.png",
    "http://example.invalid/a.png",
    "$HOME/a.png", "sub/link.png", "sub/../link.png", "x" * 5000 + ".png",
    "sub/" * 400 + "a.png", "\n.png",
    "link.png/", "fifo.png", "..%2foutside.png", "\u2025/outside.png", "C:\\Windows\\win.ini",
    "\\\\server\\share\\a.png", "chain.png", "back/../../outside.png", "dangling.png", "gone.png",
)  # fmt: skip


def hostile_names(seed: int, folder: Path) -> int:
    """Refuse every file name that is no picture inside the image folder; returns their number."""
    root = folder / "img"
    (root / "sub").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "outside.png")
    Image.new("RGB", (4, 4)).save(root / "inside.png")
    os.symlink(folder / "outside.png", root / "link.png")
    os.symlink("../../outside.png", root / "sub" / "link.png")
    os.symlink(folder, root / "folder_link")
    os.symlink("/dev/zero", root / "dev.png")
    os.symlink("loop.png", root / "loop.png")
    os.symlink("link.png", root / "chain.png")
    os.symlink("gone.png", root / "dangling.png")
    os.symlink(".", root / "back")
    os.mkfifo(root / "fifo.png")
    path = folder / "a.json"
    for name in ("inside.png", *HOSTILE_NAMES):
        image = {"id": 1, "file_name": name, "width": 4, "height": 4}
        data = {"images": [image], "categories": [{"id": 1, "name": "a"}], "annotations": []}
        path.write_text(json.dumps(data))
        try:
            validate_coco(str(path), str(root))
            assert name == "inside.png", f"{name[:60]!r} was accepted"
        except DatasetError as error:
            assert name != "inside.png" and "image id 1" in str(error), error
    return len(HOSTILE_NAMES)
