"""Compare evaluation from the configs as they are loaded: detrex's own and this project's.

    cd DETREX && python -m tests.upstream.compare_evaluation --output rows.json [NAME ...]
    python -m tests.upstream.compare_evaluation --splice    # the golden file's rows into the page

Runs where detectron2 and detrex are installed, in the root of a detrex checkout. For every config
that both have and that can be built there, both models get weights that are a formula of their
names, float64, and one small image. Models that configs share are compared once. Rows are written
as they come, and what a file has already is not done again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Instances
from omegaconf import DictConfig, OmegaConf

from tests.golden import formula
from tests.projects.upstream_facts import ROOT, UPSTREAM, plain
from tokendetr.analysis.tables import Cell, Table, splice

SMALL = (224, 256)
LARGE = (640, 800)  # for 1,800 and 2,400 proposals, and Focus-DETR's 300 tokens in each layer
UNUSED = ("dn_number", "label_noise_ratio", "criterion", "device")
TOLERANCE = 1e-5
GOLDEN = ROOT / "tests" / "golden" / "upstream_evaluation.json"
PAGE = ROOT / "docs" / "upstream_differences.md"


def size(name: str) -> tuple[int, int]:
    """Height and width of the image for a config."""
    few = name.startswith(("projects/h_deformable", "projects/focus"))
    return LARGE if few else SMALL


def identity(model: DictConfig) -> str:
    """A text that two configs share if their models are the same at evaluation."""
    kept = {key: plain(model[key]) for key in model if key not in UNUSED}
    return repr(OmegaConf.create(kept, flags={"allow_objects": True}))


def evaluate(model: DictConfig, name: str, options: dict[str, Any]) -> Instances:
    """Build a model, fill it and return its detections of the image."""
    model.device = "cpu"
    if options:
        model.transformer.encoder.sparsifier.update(options)
    built = instantiate(model).double().eval()
    formula.fill(built)
    height, width = size(name)
    image = formula.image(height, width, 1).double()
    record = {"image": image, "height": height, "width": width}
    with torch.no_grad():
        return built([record])[0]["instances"]


def compare(theirs: Instances, ours: Instances) -> dict[str, Any]:
    """Largest differences of scores and of boxes in pixels, matched in the order of the scores."""
    orders = [found.scores.argsort(descending=True, stable=True) for found in (theirs, ours)]
    one, other = (found[order] for found, order in zip((theirs, ours), orders, strict=True))
    scores = float((one.scores - other.scores).abs().max())
    boxes = float((one.pred_boxes.tensor - other.pred_boxes.tensor).abs().max())
    same = bool((one.pred_classes == other.pred_classes).all())
    return {
        "detections": [len(theirs), len(ours)],
        "scores": scores,
        "boxes_px": boxes,
        "classes": same,
        "equal": same and scores <= TOLERANCE and boxes <= TOLERANCE * max(one.image_size),
    }


def row(name: str, ours: DictConfig) -> dict[str, Any]:
    """Compare one config; an error of either side is the row's result."""
    options: dict[str, Any] = {}
    if "/focus_detr/" in name:
        from focus_detr import PUBLISHED_OPTIONS

        options = dict(PUBLISHED_OPTIONS)
    results = []
    for side, model in (("detrex", LazyConfig.load(name).model), ("here", ours)):
        try:
            results.append(evaluate(model, name, options if side == "here" else {}))
        except Exception as error:
            return {"equal": None, "error": f"{side}: {type(error).__name__}: {error}"[:300]}
    return compare(*results) | ({"options": sorted(options)} if options else {})


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """Return the rows as a table; models that configs share are named once."""
    cells: list[list[Cell]] = []
    for name, row in rows.items():
        if "same_model_as" in row:
            shown = [f"as `{Path(row['same_model_as']).stem}`", None]
        else:
            shown = [f"{row[key]:.1e}" for key in ("scores", "boxes_px")]
        cells.append([f"`{Path(name).stem}`", *shown])
    columns = ("config", "scores", "boxes, pixels")
    note = (
        "`python -m tests.upstream.compare_evaluation`; detectron2 02b5c4e2, detrex e244e6c, "
        "torch 2.14.1, CPU; 2026-11-28."
    )
    return Table("upstream_evaluation", "", columns, cells, (note,))


def main() -> None:
    """Compare the configs and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=GOLDEN, help="JSON file of the rows")
    parser.add_argument("--splice", action="store_true", help="only write the golden rows' page")
    parser.add_argument("names", nargs="*", help="names of configs; all by default")
    args = parser.parse_args()
    if args.splice:
        splice(PAGE, table(json.loads(GOLDEN.read_text())))
        return
    torch.set_default_dtype(torch.float64)
    rows = json.loads(args.output.read_text()) if args.output.is_file() else {}
    seen: dict[str, str] = {}
    for name in UPSTREAM:
        if args.names and Path(name).stem not in args.names:
            continue
        ours = LazyConfig.load(str(ROOT / name)).model
        first = seen.setdefault(identity(ours), name)
        if name in rows:
            continue
        start = time.monotonic()
        rows[name] = {"same_model_as": first} if first != name else row(name, ours)
        rows[name]["seconds"] = round(time.monotonic() - start, 1)
        args.output.write_text(json.dumps(rows, indent=1) + "\n")
        print(name, rows[name], flush=True)


if __name__ == "__main__":
    main()
