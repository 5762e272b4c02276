"""Put this project's encoders into detectors of other people, and record what works.

    python -m tests.upstream.clients --detrex CHECKOUT --others FOLDER --output clients.json
    python -m tests.upstream.clients --table clients.json

Runs where detectron2 and detrex are installed, on a CPU. ``--others`` is a folder with checkouts of
the public repositories in ``CLIENTS``, each under the name given there; what is not there is left
out. For each detector and method: the build, one training step with gradients, and one evaluation
on two images of different sizes; with all tokens kept, the largest difference to the detector's own
encoder with equal weights.
"""

import copy
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from torch import nn

from dynamic_detr import DynamicSparsifier
from focus_detr import FocusSparsifier
from sparse_detr import SparseSparsifier
from tests.upstream import first_code
from tests.upstream.rows import parser_of, rows_of
from tokendetr import encoder as encoder_api
from tokendetr.analysis.tables import Table
from tokendetr.config import sparsify, sparsify_pixel_decoder

SIZES = ((256, 320), (224, 288))
TWO_STAGES = ("--with_box_refine", "--two_stage")  # options of programs on the first code
Node = DictConfig | None


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


def config_of(module: str, **changes: Any) -> DictConfig:
    """The model of a config file, with a few queries and other changes by dotted key."""
    model = importlib.import_module(module).model
    for key, value in ({"device": "cpu"} | changes).items():
        node: Any = model
        *parents, last = key.split("__")
        for parent in parents:
            node = node[parent]
        if last in node or last == "device":
            node[last] = value
    return model


def swapped(model: DictConfig, node: Node) -> nn.Module:
    """A model whose encoder is at ``transformer.encoder``."""
    model = copy.deepcopy(model)
    return instantiate(model if node is None else sparsify(model, node))


def r50(name: str) -> DictConfig:
    return config_of(f"projects.{name}.configs.models.{name}_r50", num_queries=100)


def rank_detr() -> DictConfig:
    return config_of(
        "projects.rank_detr.configs.models.rank_detr_r50",
        with_box_refine=True,
        as_two_stage=True,
        num_queries_one2one=50,
        num_queries_one2many=100,
        transformer__two_stage_num_proposals=150,
    )


def mr_detr() -> DictConfig:
    # Its denoising needs its mixed selection, which only this config sets.
    return config_of("projects.mr_detr_dino.configs.deformable_detr_r50_two_stage_12ep_plusplus")


def stable_dino() -> DictConfig:
    model = config_of("projects.stabledino.configs.models.stabledino_r50", num_queries=100)
    model.transformer.encoder.pop("multi_level_fusion", None)
    return model


def align_detr() -> DictConfig:
    return config_of("projects.align_detr.configs.models.aligndetr_r50", num_queries=100)


def deta() -> DictConfig:
    return config_of("projects.deta.configs.models.deta_r50", num_queries=300)


def dino_eva() -> DictConfig:
    side = max(max(size) for size in SIZES)  # it pads every image to its square
    return config_of(
        "projects.dino_eva.configs.models.dino_eva_02",
        num_queries=100,
        backbone__square_pad=side,
        backbone__net__img_size=side,
    )


def h_deformable_detr() -> DictConfig:
    return config_of(
        "projects.h_deformable_detr.configs.models.h_deformable_detr_r50",
        with_box_refine=True,
        as_two_stage=True,
    )


def maskdino(node: Node) -> nn.Module:
    model = importlib.import_module("projects.maskdino.configs.models.maskdino_r50").model
    model = copy.deepcopy(model)
    model.params.num_queries, model.params.dec_layers, model.params.dn_num = 40, 3, 10
    return instantiate(model if node is None else sparsify_pixel_decoder(model, node))


def of_detectron2(package: str, config: str, add: tuple[str, ...], node: Node) -> nn.Module:
    """A model from a yacs config of a package whose operator falls back to PyTorch on a CPU."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from detectron2.projects.deeplab import add_deeplab_config

    first_code.without_compiled_operator()
    module = importlib.import_module(package)
    cfg = get_cfg()
    add_deeplab_config(cfg)
    for name in add:
        getattr(module, name)(cfg)
    folder = Path(module.__path__[0]).parent
    cfg.merge_from_file(str(folder / config))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    return model if node is None else encoder_api.sparsify_pixel_decoder(model, instantiate(node))


def mask2former(node: Node) -> nn.Module:
    config = "configs/coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"
    return of_detectron2("mask2former", config, ("add_maskformer2_config",), node)


def maskdino_of_its_authors(node: Node) -> nn.Module:
    config = "configs/coco/instance-segmentation/maskdino_R50_bs16_50ep_3s.yaml"
    return of_detectron2("maskdino", config, ("add_maskdino_config",), node)


def of_first_code(folder: str, *arguments: str) -> Callable[[Node], nn.Module]:
    """A detector on the code of the first Deformable DETR."""

    def make(node: Node) -> nn.Module:
        place = next(Path(path) for path in sys.path if Path(path).name == folder)
        model = first_code.build(place, *arguments)
        if node is None:
            return model
        return encoder_api.sparsify_pixel_decoder(model, instantiate(node))

    return make


@dataclass(frozen=True)
class Client:
    """A detector of other people.

    Attributes:
        make: builds it with a method's node, or as it is (None).
        offers: "two stages", "one stage", "pixel decoder", or "another criterion" (two stages).
        folder: of its checkout below ``--others``; "" for detrex's own.
        levels: of its encoder.
        classes: of its criterion.
    """

    make: Callable[[Node], nn.Module]
    offers: str
    folder: str = ""
    levels: int = 4
    classes: int = 80


def of_config(build: Callable[[], DictConfig]) -> Callable[[Node], nn.Module]:
    return lambda node: swapped(build(), node)


def first_code_client(folder: str, *arguments: str, levels: int = 4) -> Client:
    make = of_first_code(folder, *arguments)
    return Client(make, "pixel decoder", folder, levels, classes=91)


CLIENTS = {
    "DINO": Client(of_config(lambda: r50("dino")), "two stages"),
    "Deformable DETR": Client(of_config(lambda: r50("deformable_detr")), "one stage"),
    "DAB-Deformable DETR": Client(of_config(lambda: r50("dab_deformable_detr")), "one stage"),
    "DN-Deformable DETR": Client(of_config(lambda: r50("dn_deformable_detr")), "one stage"),
    "H-Deformable DETR": Client(of_config(h_deformable_detr), "two stages"),
    "DETA": Client(of_config(deta), "another criterion", levels=5),
    "DINO, EVA-02": Client(of_config(dino_eva), "two stages"),
    "Align-DETR": Client(of_config(align_detr), "another criterion"),
    "MaskDINO": Client(maskdino, "pixel decoder"),
    "Rank-DETR": Client(of_config(rank_detr), "another criterion", "rank_detr"),
    "Mr.DETR": Client(of_config(mr_detr), "two stages", "mr_detr"),
    "Stable-DINO": Client(of_config(stable_dino), "two stages", "stable_dino"),
    "Mask2Former": Client(mask2former, "pixel decoder", "mask2former"),
    "MaskDINO, its authors'": Client(maskdino_of_its_authors, "pixel decoder", "maskdino"),
    "Deformable DETR, its authors'": first_code_client("deformable_detr"),
    "MS-DETR, its authors'": first_code_client(
        "ms_detr", *TWO_STAGES, "--mixed_selection", "--use_ms_detr"
    ),
    "H-Deformable DETR, its authors'": first_code_client(
        "h_deformable_detr", *TWO_STAGES, "--mixed_selection"
    ),
    "DETA, its authors'": first_code_client("deta", *TWO_STAGES, "--num_queries", "300", levels=5),
}


def methods(offers: str, layers: int, levels: int, classes: int) -> dict[str, Node]:
    """The methods as one would configure them for a detector."""
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
    nodes = methods(client.offers, layers=6, levels=client.levels, classes=client.classes)
    for name, node in nodes.items():
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
