"""Write a report on runs as one self-contained HTML page, without network or other files."""

import base64
import json
import logging
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import torch
from jinja2 import Environment
from PIL import Image

from tokendetr import __version__
from tokendetr.analysis.machine_load import machine_load
from tokendetr.analysis.recorded_rows import machine
from tokendetr.errors import OutputError
from tokendetr.evaluation.error_analysis import Analysis, Comparison, compare_results
from tokendetr.io.atomic import write_atomically
from tokendetr.io.outputs import check_output_file
from tokendetr.io.temporary import temporary_folder
from tokendetr.predict import read_rgb
from tokendetr.report.figures import (
    COLORS,
    analysis_figures,
    cost_figures,
    load_plotly,
    training_figures,
)
from tokendetr.report.run import Run, read_run, timed_in_turns
from tokendetr.report.tokens import record_image

__all__ = ["write_page", "write_report"]

logger = logging.getLogger(__name__)

MOST_BYTES = 8_000_000
"""Size above which a page is rendered again with smaller images."""

RANDOM = "random"

_SIDES = (640, 420, 280)
"""Lengths of images' longer sides, in pixels, tried until the page is small enough."""


def write_report(
    sources: Sequence[str],
    output: str | Path,
    *,
    device: str = "cpu",
    limit: int = 200,
    worst: int = 4,
    random: int = 4,
    token_images: int = 2,
) -> Path:
    """Read one or more runs and write a page about them.

    Args:
        sources: folders of trainings, or names of configs that come with weights.
        output: the HTML file; an existing one is overwritten.
        device: device that the detectors run on.
        limit: maximum number of images to run a detector on if it has no results yet.
        worst: number of images with the most errors to show for each run.
        random: number of random images, the same for all runs.
        token_images: number of these to show with their tokens.

    Returns:
        The file.

    Raises:
        ConfigError, DatasetError, KeyError, FileNotFoundError: a run cannot be read.
        OutputError: the file cannot be written, or two runs have the same name.
    """
    load_plotly()
    check_output_file(str(output))
    names = [os.path.basename(os.path.realpath(os.path.expanduser(source))) for source in sources]
    if len(set(names)) < len(names):
        raise OutputError(f"two runs have the same name ({', '.join(names)}): rename a folder")
    with temporary_folder() as cache:
        runs = [read_run(each, cache, device=device, limit=limit) for each in sources]
        comparisons = _compared_with_the_first(runs)
        runs = timed_in_turns(runs)
    return write_page(
        runs,
        output,
        worst=worst,
        random=random,
        token_images=token_images,
        comparisons=comparisons,
    )


def _compared_with_the_first(runs: Sequence[Run]) -> dict[str, Comparison]:
    """Return run -> comparison, for the runs that were evaluated on the first one's images."""
    first, *others = runs
    return {
        run.name: compare_results(first.annotations, first.results, run.results)
        for run in others
        if run.evaluated == first.evaluated
    }


def write_page(
    runs: Sequence[Run],
    output: str | Path,
    *,
    worst: int = 4,
    random: int = 4,
    token_images: int = 2,
    comparisons: Mapping[str, Comparison] | None = None,
) -> Path:
    """Write a page about runs that have been read.

    Args:
        runs: at least one run.
        output: the HTML file; an existing one is overwritten.
        worst: number of images with the most errors to show for each run.
        random: number of random images, the same for runs on the same images.
        token_images: number of these to show with their tokens.
        comparisons: run -> its comparison with the first run.

    Returns:
        The file.
    """
    shown = _chosen_images(runs, worst, random)
    chosen = [path for path, why in shown.items() if why == RANDOM]
    tokens = _tokens(runs, chosen, token_images)
    for side in _SIDES:
        page = _render(runs, shown, tokens, comparisons or {}, side=side, worst=worst)
        content = page.encode(errors="replace")  # JSON's names may hold half characters
        if len(content) <= MOST_BYTES:
            break
        logger.info("The page has %.1f MB: trying smaller images", len(content) / 1e6)
    write_atomically(str(output), content)
    return Path(output)


def _chosen_images(runs: Sequence[Run], worst: int, random: int) -> dict[str, str]:
    """Return file -> ``random``, or the name of the run that has it among its worst images.

    Runs on the same images share the random ones. Files that are missing are left out.
    """
    shown: dict[str, str] = {}
    there: dict[str, list[str]] = {}  # the worst first
    for run in runs:
        paths = map(run.image_path, run.analysis.images)
        there[run.name] = [str(path) for path in paths if path.is_file()]
        missing = len(run.analysis.images) - len(there[run.name])
        if missing and there[run.name]:
            logger.warning(
                "%s: %d images are not in %s, and are not shown", run.name, missing, run.image_root
            )
        files = sorted(there[run.name])
        if not set(files) & set(shown):
            shown |= dict.fromkeys(Random(0).sample(files, min(random, len(files))), RANDOM)
    for name, files in there.items():
        for path in files[:worst]:
            shown.setdefault(path, name)
    return shown


def _tokens(
    runs: Sequence[Run], paths: Sequence[str], most: int
) -> dict[str, dict[str, list[Any]]]:
    """Return run -> image file -> recorded parts, for at most ``most`` images of each run."""
    found: dict[str, dict[str, list[Any]]] = {}
    for run in runs:
        if run.detector is None:
            continue
        own = {str(run.image_path(row)) for row in run.analysis.images}
        for path in [path for path in paths if path in own][:most]:
            parts = record_image(run.detector.predictor, read_rgb(Path(path)))
            if parts:
                found.setdefault(run.name, {})[path] = parts
    return found


def _render(
    runs: Sequence[Run],
    shown: dict[str, str],
    tokens: dict[str, dict[str, list[Any]]],
    comparisons: Mapping[str, Comparison],
    *,
    side: int,
    worst: int,
) -> str:
    keys = {path: f"image{number}" for number, path in enumerate(shown)}
    rows = {str(run.image_path(row)): row for run in runs for row in run.analysis.images}
    classes = dict.fromkeys(row["name"] for run in runs for row in run.analysis.classes)
    colors = {name: COLORS[n % len(COLORS)] for n, name in enumerate(classes)}
    data = {
        "colors": colors,
        "images": {keys[path]: _embedded(path, rows[path], side) for path in shown},
        "figures": {
            "cost": cost_figures(runs) if len(runs) > 1 and runs[0].cost else [],
            "training": training_figures(runs),
            **{f"run{n}": analysis_figures(run.analysis, colors) for n, run in enumerate(runs)},
        },
        "runs": [_run_data(run, shown, keys, worst) for run in runs],
        "tokens": [
            {keys[path]: parts for path, parts in tokens.get(run.name, {}).items()} for run in runs
        ],
    }
    plotly = load_plotly()
    encoder = plotly.utils.PlotlyJSONEncoder
    folder = files("tokendetr.report")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    threads = f"{torch.get_num_threads()} thread(s)"
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    return template.render(
        runs=runs,
        trained=any(run.rows for run in runs),
        has_tokens=bool(tokens),
        has_images=bool(shown),
        has_cost=all(run.cost for run in runs),
        comparisons=comparisons,
        evaluated=_evaluated(runs),
        data=json.dumps(data, cls=encoder).replace("<", "\\u003c"),
        plotly=plotly.offline.get_plotlyjs(),
        script=(folder / "page.js").read_text(encoding="utf-8"),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        machine=", ".join(filter(None, (machine(), threads, machine_load().text))),
    )


def _evaluated(runs: Sequence[Run]) -> list[str]:
    """Return what the runs were evaluated on: one sentence if it is the same for all."""
    found = {
        run.name: f"{run.evaluated}: {run.analysis.num_images:,} images with "
        f"{run.analysis.num_boxes:,} boxes.{_undetected(run.analysis)}"
        for run in runs
    }
    if len(set(found.values())) == 1:
        sentence = next(iter(found.values()))
        return [sentence[:1].upper() + sentence[1:]]  # names keep their capitals
    return [f"{name}: {text}" for name, text in found.items()]


def _undetected(analysis: Analysis) -> str:
    count = analysis.num_images_without_detections
    return f" Without any detection, so that all boxes are missed: {count:,}." if count else ""


def _embedded(path: str, row: dict[str, Any], side: int) -> dict[str, Any]:
    """Return an image as a data URL, with the size that boxes refer to: the data set's if known."""
    image = Image.fromarray(read_rgb(Path(path)))
    width, height = row["width"] or image.width, row["height"] or image.height
    image.thumbnail((side, side))
    content = BytesIO()
    image.save(content, format="JPEG", quality=82, optimize=True)
    address = base64.b64encode(content.getvalue()).decode()
    return {
        "name": Path(path).name,
        "width": width,
        "height": height,
        "src": f"data:image/jpeg;base64,{address}",
    }


def _run_data(run: Run, shown: dict[str, str], keys: dict[str, str], worst: int) -> dict[str, Any]:
    rows = {str(run.image_path(row)): row for row in run.analysis.images}
    chosen = {
        "worst": [path for path in rows if path in shown][:worst],
        RANDOM: [path for path, why in shown.items() if why == RANDOM and path in rows],
    }
    used = {path for paths in chosen.values() for path in paths}
    return {
        "name": run.name,
        "classes": [row["name"] for row in run.analysis.classes],
        "images": {why: [keys[path] for path in paths] for why, paths in chosen.items()},
        "boxes": {keys[path]: run.analysis.boxes[rows[path]["id"]] for path in used},
        "counts": {
            keys[path]: {name: rows[path][name] for name in ("found", "wrong", "missed")}
            for path in used
        },
    }
