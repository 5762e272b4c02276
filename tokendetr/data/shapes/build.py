"""Write the shapes data set to disk, as JPEG files and COCO-format JSON, all or nothing."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from tokendetr.data.paths import datasets_root
from tokendetr.data.shapes.random import IntegerRandom
from tokendetr.data.shapes.scene import CATEGORIES, make_scene
from tokendetr.errors import OutputError
from tokendetr.io.progress import Progress
from tokendetr.io.signals import STOP_SIGNALS

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
SUMMARY = "summary.json"
_FIRST_IMAGE_ID = {"train": 1, "val": 1_000_001}


@dataclass(frozen=True)
class ShapesSpec:
    """Parameters that, with Pillow's version, determine the bytes of the data set.

    Attributes:
        num_train, num_val: images per split.
        seed: a non-negative integer.
        version: version of this generator; incremented whenever an image or annotation changes.
    """

    num_train: int = 3000
    num_val: int = 250
    seed: int = 0
    version: int = 1

    def __post_init__(self) -> None:
        for name in ("num_train", "num_val", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def shapes_root() -> Path:
    """Return ``$DETECTRON2_DATASETS/shapes``, else ``./datasets/shapes``."""
    return datasets_root() / "shapes"


def image_folder(root: Path, split: str) -> Path:
    """Return the folder of a split's JPEG files."""
    return root / split


def annotation_file(root: Path, split: str) -> Path:
    """Return the COCO-format JSON file of a split."""
    return root / "annotations" / f"instances_{split}.json"


def ensure_shapes(
    root: Path | None = None, spec: ShapesSpec | None = None, workers: int | None = None
) -> Path:
    """Generate the data set unless it exists; concurrent callers wait for the first one.

    Args:
        root: folder of the data set; default :func:`shapes_root`.
        spec: what to generate; None also accepts any existing set of the current version.
        workers: number of processes; default one per core.

    Returns:
        The folder.

    Raises:
        ValueError: the folder exists and holds another version, another ``spec``, or no shapes data
            set.
        OutputError: the files cannot be written; nothing is left of them.
    """
    root = shapes_root() if root is None else Path(root)
    if not root.exists():  # it appears whole, by a renaming; the parent of one may be read-only
        root.parent.mkdir(parents=True, exist_ok=True)
        with _locked(root.parent / f".{root.name}.lock"):
            if not root.exists():
                _generate(root, spec or ShapesSpec(), workers or os.cpu_count() or 1)
                return root
    _check_existing(root, spec)
    return root


def _generate(root: Path, spec: ShapesSpec, workers: int) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write_all(scratch, spec, workers)
        scratch.chmod(0o755)
        scratch.rename(root)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise OutputError(f"{root} cannot be written: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, which is removed at the end."""
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when it closes, also if the process dies
            if not _is_at(file, path):
                continue  # its last holder has removed it
            try:
                yield
            finally:
                path.unlink()
            return


def _is_at(file: TextIO, path: Path) -> bool:
    """Return whether an open file is still the one at a path."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _check_existing(root: Path, spec: ShapesSpec | None) -> None:
    advice = f"move or delete {root}, or set DETECTRON2_DATASETS to another folder"
    summary = root / SUMMARY
    if not summary.is_file():
        raise ValueError(
            f"{root} exists but has no {SUMMARY}, so it is not a shapes data set; {advice}"
        )
    try:
        found = json.loads(summary.read_text())["spec"]
        wanted = asdict(spec or ShapesSpec(**{**found, "version": ShapesSpec.version}))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{summary} is damaged, so {root} is not a shapes data set that can be trusted "
            f"({type(error).__name__}: {error}); {advice}"
        ) from error
    if found != wanted:
        raise ValueError(f"{root} holds the shapes data set {found}, not {wanted}; {advice}")


def _write_all(root: Path, spec: ShapesSpec, workers: int) -> None:
    summary: dict[str, Any] = {"spec": asdict(spec), "splits": {}}
    (root / "annotations").mkdir()
    for split, count in zip(SPLITS, (spec.num_train, spec.num_val), strict=True):
        image_folder(root, split).mkdir()
        records = _write_images(root, split, count, spec.seed, workers)
        document = _coco_document(split, records, spec)
        annotation_file(root, split).write_text(json.dumps(document, separators=(",", ":")))
        summary["splits"][split] = _describe(document)
    (root / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    logger.info("made the shapes data set: %s", summary["splits"])


def _write_images(
    root: Path, split: str, count: int, seed: int, workers: int
) -> list[dict[str, Any]]:
    """Render the images of a split; return each one's COCO record and annotations, in order."""
    jobs = [(str(image_folder(root, split)), split, seed, index) for index in range(count)]
    progress: dict[str, Any] = {"total": count, "unit": "image", "mininterval": 2.0}
    progress["desc"] = f"drawing shapes_{split}"
    if min(workers, count) < 2 or "fork" not in multiprocessing.get_all_start_methods():
        return list(Progress(map(_write_image, jobs), **progress))
    # Not multiprocessing.Pool: it waits forever for a worker that is killed, or by Ctrl-C.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, count), context, _follow_parent) as pool:
        try:
            return list(Progress(pool.map(_write_image, jobs, chunksize=16), **progress))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _follow_parent() -> None:
    """Leave stop signals to the parent process, as a group gets them all; end when that ends."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _write_image(job: tuple[str, str, int, int]) -> dict[str, Any]:
    folder, split, seed, index = job
    scene = make_scene(IntegerRandom(seed, SPLITS.index(split), index))
    name = f"{index + 1:06d}.jpg"
    # No chroma subsampling: textures of a few pixels must survive.
    Image.fromarray(scene.image_HWC).save(Path(folder) / name, quality=90, subsampling=0)
    height, width = scene.image_HWC.shape[:2]
    image = {"file_name": name, "height": height, "width": width}
    return {"image": image, "annotations": scene.annotations}


def _coco_document(split: str, records: list[dict[str, Any]], spec: ShapesSpec) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(records, start=_FIRST_IMAGE_ID[split]):
        images.append({"id": image_id, **record["image"]})
        for annotation in record["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    return {
        "info": {"description": f"shapes {split}", "version": spec.version, "seed": spec.seed},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": name.split("_")[1]}
            for number, name in enumerate(CATEGORIES, start=1)
        ],
    }


def _describe(document: dict[str, Any]) -> dict[str, Any]:
    """Return counts and a digest of the annotations, for the log and for golden tests."""
    objects = [record for record in document["annotations"] if not record["iscrowd"]]
    areas = [record["area"] for record in objects]
    crowds = len(document["annotations"]) - len(objects)
    annotated = {record["image_id"] for record in document["annotations"]}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return {
        "images": len(document["images"]),
        "empty_images": len(document["images"]) - len(annotated),
        "objects": len(objects),
        "crowds": crowds,
        "small": sum(area < 32**2 for area in areas),
        "medium": sum(32**2 <= area < 96**2 for area in areas),
        "large": sum(area >= 96**2 for area in areas),
        "annotations_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
