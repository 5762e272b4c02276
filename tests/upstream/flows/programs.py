"""Start programs of detectron2, detrex and this project, and read what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from tests.train.toy import write_dataset

ROOT = Path(__file__).absolute().parents[3]
"""Of the tests that run: not resolved, since its packages may be installed elsewhere."""


def checkout(name: str) -> Path:
    """The source checkout of ``detectron2`` or ``detrex``.

    Raises:
        RuntimeError: nobody said where it is.
    """
    place = os.environ.get(f"UPSTREAM_{name.upper()}")
    if not place:
        raise RuntimeError(f"UPSTREAM_{name.upper()} is not set: run `make test-upstream`")
    return Path(place)


def detrexs_projects(folder: Path) -> Path:
    """A folder that, put in front on the path, makes ``import projects...`` lead to detrex's.

    detrex's checkout itself would hide what the installed detrex has compiled.
    """
    (folder / "detrex").mkdir(exist_ok=True)
    link = folder / "detrex" / "projects"
    if not link.exists():
        link.symlink_to(checkout("detrex") / "projects")
    return link.parent


def start(
    command: list[Any], cwd: Path = ROOT, *, code: int = 0, **variables: object
) -> subprocess.CompletedProcess[str]:
    """Run ``python COMMAND`` on one thread to its end and return what it printed.

    Args:
        command: the program and its arguments.
        cwd: working folder.
        code: the exit status that is expected.
        variables: added to the environment.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment |= {name: str(value) for name, value in variables.items()}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout[-4000:] + done.stderr[-4000:]
    return done


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.json."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def as_coco(folder: Path) -> Path:
    """A tiny data set where COCO is looked for, with COCO's categories.

    Returns:
        the folder, for ``DETECTRON2_DATASETS``.
    """
    content = json.loads(write_dataset(folder / "coco", num_images=4).read_text())
    content["categories"] = [
        {"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]
    ]
    (folder / "coco" / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (folder / "coco" / split).symlink_to("images")
        place = folder / "coco" / "annotations" / f"instances_{split}.json"
        place.write_text(json.dumps(content))
    return folder
