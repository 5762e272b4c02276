"""Compare detectors of detrex's own and of this project: keys, detections, losses, gradients.

    python -m tests.upstream.parity --detrex CHECKOUT --output parity.json
    python -m tests.upstream.parity --table parity.json  # of docs/upstream_differences.md

Runs where detectron2 and detrex are installed. Both sides' configs are made narrow in the same way,
filled with weights that are a formula of their names, and run in float64 on two images of different
sizes: each alone in evaluation (in a batch detrex's ignore what
is padding), both in training. "Noise" is what is random in a training pass: denoising and dropout;
where it is on, both sides start from the same seed.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from torch import nn

from tests import small_configs
from tests.golden import formula
from tests.upstream.rows import parser_of, rows_of
from tokendetr.analysis.tables import Table
from tokendetr.config import resize, zoo

CONFIGS = {
    "DINO, 4 levels": "dino/configs/dino-resnet/dino_r50_4scale_12ep.py",
    "DINO, 5 levels": "dino/configs/dino-resnet/dino_r50_5scale_12ep.py",
    "DINO, Swin": "dino/configs/dino-swin/dino_swin_tiny_224_4scale_12ep.py",
    "Deformable DETR": "deformable_detr/configs/deformable_detr_r50_50ep.py",
    "... box refinement": "deformable_detr/configs/deformable_detr_r50_with_box_refinement_50ep.py",
    "... two stages": "deformable_detr/configs/deformable_detr_r50_two_stage_50ep.py",
    "DAB-Deformable": "dab_deformable_detr/configs/dab_deformable_detr_r50_50ep.py",
    "... two stages ": "dab_deformable_detr/configs/dab_deformable_detr_r50_two_stage_50ep.py",
    "DN-Deformable": "dn_deformable_detr/configs/dn_deformable_detr_r50_50ep.py",
    "H-Deformable, repaired": "h_deformable_detr/configs/h_deformable_detr_r50_50ep.py",
    "... two stages  ": "h_deformable_detr/configs/h_deformable_detr_r50_two_stage_12ep.py",
}
REPAIRED = "H-Deformable, repaired"
SIZES = ((160, 224), (128, 192))
BOXES = ([[10, 20, 90, 120], [100, 30, 200, 140]], [[5, 5, 60, 60]])


def records() -> list[dict[str, Any]]:
    """Two images with boxes, all in float64."""
    batch = formula.records(SIZES)
    for record, boxes in zip(batch, BOXES, strict=True):
        record["image"] = record["image"].double()
        record["instances"].gt_boxes.tensor = torch.tensor(boxes, dtype=torch.float64)
        record["instances"].gt_classes %= small_configs.CLASSES
    return batch


def build(model: DictConfig, name: str) -> nn.Module:
    """A narrow model in float64, its weights a formula."""
    node = small_configs.shrink(copy.deepcopy(model))
    # The embeddings of places in detrex's decoders have 256 channels whatever a config says.
    resize(node, width=256, num_heads=8, feedforward_dim=64)
    node.criterion.num_classes = small_configs.CLASSES
    node.select_box_nums_for_evaluation = small_configs.QUERIES  # detrex's leave it to a default
    if name == REPAIRED:
        # Without refined boxes detrex's decoder reads a variable that it has not set.
        node.transformer.decoder.look_forward_twice = False
    built = instantiate(node).double()
    formula.fill(built)
    return built


def detections(model: nn.Module, record: dict[str, Any]) -> Instances:
    """One image's detections, best first."""
    with torch.no_grad():
        found = model.eval()([record])[0]["instances"]
    return found[found.scores.argsort(descending=True, stable=True)]


def step(model: nn.Module, *, noise: bool) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses and gradients of one training pass."""
    model.train()
    if not noise:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if hasattr(model, "dn_number"):
            model.dn_number = 0
        for owner in (model, getattr(model, "denoising_generator", None)):
            if hasattr(owner, "label_noise_prob"):  # DN-Deformable DETR
                owner.label_noise_prob = owner.box_noise_scale = 0.0
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    losses = model(records())
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: float(loss) for name, loss in losses.items()}, gradients


def furthest(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, str]:
    """The largest relative difference of equal keys, and whose it is."""
    found = (0.0, "")
    for name in one.keys() & other.keys():
        a, b = torch.as_tensor(one[name]), torch.as_tensor(other[name])
        size = max(float(a.abs().max()), 1e-12)
        found = max(found, (float((a - b).abs().max()) / size, name))
    return found


def compare_steps(theirs: nn.Module, ours: nn.Module, *, noise: bool) -> dict[str, Any]:
    """Losses and gradients of one pass of both."""
    (losses, gradients), (our_losses, our_gradients) = (
        step(m, noise=noise) for m in (theirs, ours)
    )
    norms = [
        sum(float(g.square().sum()) for g in grads.values()) ** 0.5
        for grads in (gradients, our_gradients)
    ]
    return {
        "losses": furthest(losses, our_losses),
        "gradients": furthest(gradients, our_gradients),
        "norm": abs(norms[0] - norms[1]) / norms[0],
        "only_theirs": sorted(losses.keys() - our_losses.keys()),
        "only_ours": sorted(our_losses.keys() - losses.keys()),
    }


def compare(name: str, path: str, detrex: Path) -> dict[str, Any]:
    """One row."""
    theirs = build(LazyConfig.load(str(detrex / "projects" / path)).model, name)
    ours = build(zoo.get_config(Path(path).stem).model, name)
    assert type(theirs).__module__.startswith("projects.") and type(ours) is not type(theirs)
    found: dict[str, Any] = {"config": Path(path).stem}
    keys = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (theirs, ours)]
    found["keys"], found["equal_keys"] = len(keys[0]), keys[0] == keys[1]
    pairs = [[detections(m, record) for m in (theirs, ours)] for record in records()]
    found["scores"] = max(float((a.scores - b.scores).abs().max()) for a, b in pairs)
    found["boxes_px"] = max(
        float((a.pred_boxes.tensor - b.pred_boxes.tensor).abs().max()) for a, b in pairs
    )
    for noise in (True, False):  # switching it off stays
        found["noise" if noise else "quiet"] = compare_steps(theirs, ours, noise=noise)
    return found


def table(results: dict[str, Any]) -> Table:
    """The rows as the docs show them."""
    rows = []
    for name, row in results["rows"].items():
        quiet, noise = row["quiet"], row["noise"]
        numbers = [row["scores"], row["boxes_px"], quiet["losses"][0], quiet["norm"]]
        numbers += [noise["losses"][0], noise["norm"]]
        keys = f"{row['keys']}" if row["equal_keys"] else f"{row['keys']}, not equal"
        rows.append((name.strip(), keys, *(f"{number:.1e}" for number in numbers)))
    columns = ("detector", "equal keys", "scores", "boxes, pixels", "losses", "gradient norm")
    columns += ("losses, noise on", "gradient norm, noise on")
    made = f"{results['command']}; {results['versions']}; {results['date']}."
    return Table("upstream_parity", "", columns, rows, [made])


def main() -> None:
    """Compare, or print the table of a result file."""
    args, rows = rows_of(parser_of(__doc__), "tests.upstream.parity", table)
    torch.set_default_dtype(torch.float64)
    Boxes.to = lambda boxes, *args, **options: boxes  # it would make them float32
    for name, path in CONFIGS.items():
        if name not in rows:
            rows.keep(name, compare(name, path, args.detrex))


if __name__ == "__main__":
    main()
