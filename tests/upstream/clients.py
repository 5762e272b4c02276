"""Put this project's encoders into detectors of other people, and record what works.

    python -m tests.upstream.clients --detrex CHECKOUT --others FOLDER --output clients.json
    python -m tests.upstream.clients --table clients.json

Runs where detectron2 and detrex are installed, on a CPU. ``--others`` is a folder with checkouts of
the public repositories that ``tests/upstream/client_list.py`` names, each under the name given
there; what is not there is left out. For each detector and method: the build, one training step
with gradients, and one evaluation on two images of different sizes; with all tokens kept, the
largest difference to the detector's own encoder with equal weights.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyCall as L
from detectron2.structures import Boxes, Instances
from detrex.modeling.criterion import SetCriterion
from detrex.modeling.matcher import HungarianMatcher
from omegaconf import DictConfig
from torch import nn

from dynamic_detr import DynamicSparsifier
from focus_detr import FocusSparsifier
from sparse_detr import SparseSparsifier
from tests.upstream.client_list import CLIENTS, SIZES, Client, Node
from tests.upstream.rows import parser_of, rows_of
from tokendetr.analysis.tables import Table


def batch() -> list[dict[str, Any]]:
    """Two annotated images with masks."""
    records = []
    for height, width in SIZES:
        truth = Instances((height, width))
        boxes = torch.tensor([[20.0, 30.0, 120.0, 150.0], [60.0, 40.0, 200.0, 190.0]])
        truth.gt_boxes, truth.gt_classes = Boxes(boxes), torch.tensor([1, 7])
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
        truth.gt_masks = masks
        image = torch.rand(3, height, width) * 255
        records.append(dict(image=image, height=height, width=width, instances=truth))
    return records


def box_criterion(classes: int) -> DictConfig:
    """Deformable DETR's criterion."""
    matcher = L(HungarianMatcher)(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0)
    matcher.cost_class_type = "focal_loss_cost"
    weights = {"loss_class": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    return L(SetCriterion)(
        num_classes=classes, matcher=matcher, weight_dict=weights, loss_class_type="focal_loss"
    )


def methods(client: Client, layers: int = 6) -> dict[str, Node]:
    """The methods as one would configure them for a detector."""
    offers, levels, classes = client.offers, client.levels, client.classes
    sparse: dict[str, Any] = {"num_layers": layers, "auxiliary_heads": offers.endswith("stages")}
    focus: dict[str, Any] = {"num_levels": levels}
    dynamic: dict[str, Any] = {}
    if levels != 4:  # its defaults are for four
        fine_first = list(range(1, levels + 1))
        dynamic["keep_ratios"] = [0.5 - 0.3 * index / (levels - 1) for index in range(levels)]
        dynamic["level_orders"] = [fine_first, fine_first[::-1], fine_first[::-1]]
        dynamic["window_sizes"] = [2**power for power in range(levels - 1, 0, -1)]
    if offers in ("one stage", "pixel decoder"):
        sparse["projection"] = "own"
        focus["num_classes"] = classes
    if client.further:
        focus["criterion"] = box_criterion(classes)
    if offers == "one stage":
        sparse["auxiliary_heads"] = True
    random = {"selection": "random", "auxiliary_heads": False, "num_layers": layers}
    return {
        "keep all": L(SparseSparsifier)(keep_ratio=1.0, **random),
        "Sparse DETR": L(SparseSparsifier)(**sparse),
        "Focus-DETR": L(FocusSparsifier)(**focus),
        "Dynamic DETR": L(DynamicSparsifier)(**dynamic),
    }


def scores(model: nn.Module, records: list[dict[str, Any]]) -> list[torch.Tensor]:
    """The scores of each image's detections, best first."""
    with torch.no_grad():
        found = [model.eval()([record])[0]["instances"].scores for record in records]
    return [values.sort(descending=True).values for values in found]


def train(model: nn.Module, records: list[dict[str, Any]]) -> int:
    """One step; the number of losses.

    Raises:
        FloatingPointError: a loss or a gradient is not finite.
    """
    losses = model.train()(records)
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for name, value in {**losses, **gradients}.items():
        if not torch.isfinite(value).all():
            raise FloatingPointError(f"{name} is not finite")
    return len(losses)


def attempt(client: Client, node: Node, dense: nn.Module, records: Any) -> dict[str, Any]:
    """Build with a method, train a step, evaluate; the error of any is the result."""
    try:
        torch.manual_seed(0)
        model = client.make(node)
        model.load_state_dict(dense.state_dict(), strict=False)
        found = scores(model, records)
        difference = max(
            float((a - b).abs().max()) for a, b in zip(found, scores(dense, records), strict=True)
        )
        return {"losses": train(model, records), "scores": difference}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def row(client: Client) -> dict[str, Any]:
    """One detector with every method."""
    torch.manual_seed(0)
    records = batch()
    dense = client.make(None)
    found: dict[str, Any] = {}
    try:
        found["dense"] = {"losses": train(dense, records)}
        dense.zero_grad(set_to_none=True)
    except Exception as error:
        found["dense"] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    for name, node in methods(client).items():
        found[name] = attempt(client, node, dense, records)
    return found | {"offers": client.offers}


def table(results: dict[str, Any]) -> Table:
    """The rows as the docs show them."""

    def cell(result: dict[str, Any]) -> str:
        return result.get("error") or f"yes, {result['losses']} losses"

    rows = []
    for name, found in results["rows"].items():
        kept = found["keep all"]
        equal = kept.get("error") or f"{kept['scores']:.0e}"
        cells = [cell(found[k]) for k in ("dense", "Sparse DETR", "Focus-DETR", "Dynamic DETR")]
        rows.append((name, found["offers"], *cells, equal))
    columns = ("detector", "offers", "dense", "Sparse DETR", "Focus-DETR", "Dynamic DETR")
    columns += ("scores, all tokens kept",)
    note = f"{results['command']}; {results['versions']}; {results['date']}."
    return Table("clients", "", columns, rows, [note])


def main() -> None:
    """Try the detectors, or print the table of a result file."""
    parser = parser_of(__doc__)
    parser.add_argument("--others", type=Path, help="folder of further checkouts")
    parser.add_argument("names", nargs="*", help="detectors; all by default")
    args, rows = rows_of(parser, "tests.upstream.clients", table)
    for name, client in CLIENTS.items():
        place = args.others / client.folder if args.others and client.folder else None
        missing = client.folder and (place is None or not place.is_dir())
        known = name in rows and not args.names
        if missing or known or (args.names and name not in args.names):
            continue
        if place:
            sys.path.append(str(place.resolve()))
        rows.keep(name, row(client))


if __name__ == "__main__":
    main()
