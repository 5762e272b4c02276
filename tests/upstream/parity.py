"""Compare detectors of detrex's own and of this project: keys, detections, losses, gradients.

    python -m tests.upstream.parity --detrex CHECKOUT [--others FOLDER] --output parity.json
    python -m tests.upstream.parity --table parity.json  # of docs/upstream_differences.md

Runs where detectron2 and detrex are installed. Both sides' configs are made narrow in the same way,
filled with weights that are a formula of their names, and run in float64 on two images of different
sizes: each alone in evaluation (in a batch detrex's ignore what
is padding), both in training. "Noise" is what is random in a training pass: denoising and dropout;
where it is on, both sides start from the same seed.

Also the published Sparse DETR, if ``--others`` has a checkout of it, ``sparse_detr``
(github.com/kakaobrain/sparse-detr), in its full width. The published Focus-DETR is detrex's.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from torch import nn

import focus_detr
import sparse_detr
from tests import small_configs
from tests.golden import formula
from tests.upstream import first_code
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
    "Focus-DETR": "focus_detr/configs/focus_detr_resnet/focus_detr_r50_4scale_12ep.py",
}
SPARSE, SPARSE_CONFIG = "Sparse DETR, its authors'", "sparse_deformable_detr_r50_50ep"
SPARSE_ARGUMENTS = (*first_code.TWO_STAGES, "--eff_query_init", "--eff_specific_head")
SPARSE_ARGUMENTS += ("--rho", "0.3", "--use_enc_aux_loss")
REPAIRED = "H-Deformable, repaired"
SIZES = ((160, 224), (128, 192))
Sizes = tuple[tuple[int, int], ...]
Named = Mapping[str, torch.Tensor]
BOXES = ([[10, 20, 90, 120], [100, 30, 200, 140]], [[5, 5, 60, 60]])


@dataclass(frozen=True)
class Pair:
    """Two detectors with equal weights.

    Attributes:
        theirs: the published one.
        ours: this project's.
        config: the name of its config.
        sizes: of the images, in pixels.
        renamed: names of weights as they are here.
        losses: parts of names of losses, and what stands for them here.
    """

    theirs: nn.Module
    ours: nn.Module
    config: str
    sizes: Sizes = SIZES
    renamed: Callable[[Named], dict[str, torch.Tensor]] = dict
    losses: dict[str, str] = field(default_factory=dict)


def records(sizes: Sizes) -> list[dict[str, Any]]:
    """Two images with boxes, all in float64."""
    batch = formula.records(sizes)
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


def of_detrex(name: str, path: str, detrex: Path) -> Pair:
    """A detector of detrex and this project's by the config of the same name."""
    theirs = build(LazyConfig.load(str(detrex / "projects" / path)).model, name)
    config = Path(path).stem
    model = zoo.get_config(config).model
    published = name == "Focus-DETR"
    if published:
        model.transformer.encoder.sparsifier.update(focus_detr.PUBLISHED_OPTIONS)
    ours = build(model, name)
    assert type(theirs).__module__.startswith("projects.") and type(ours) is not type(theirs)
    if not published:
        return Pair(theirs, ours, config)
    # Its encoder takes 300 tokens in every layer, so the images must have them.
    return Pair(
        theirs,
        ours,
        config,
        formula.BIG_SIZES,
        focus_detr.from_published,
        {"select_loss": "loss_foreground"},
    )


def published_sparse_detr(checkout: Path) -> Pair:
    """Sparse DETR of its authors, with .3 of the tokens, and this project's."""
    theirs = first_code.build(checkout, *SPARSE_ARGUMENTS).double()
    first_code.without_float32("util.dam")
    formula.fill(theirs)
    model = zoo.get_config(SPARSE_CONFIG).model
    model.num_classes, model.device = 91, "cpu"
    model.select_box_nums_for_evaluation = first_code.DETECTIONS
    model.pixel_mean, model.pixel_std = [0.0] * 3, [255.0] * 3
    model.transformer.encoder.sparsifier.update(padding="counted", half_cell=False)
    return Pair(
        theirs,
        instantiate(model).double(),
        SPARSE_CONFIG,
        renamed=published_names,
        losses={"loss_ce": "loss_class", "mask_prediction": "dam"},
    )


def published_names(weights: Named) -> dict[str, torch.Tensor]:
    """Names of the published Sparse DETR's weights here."""
    return sparse_detr.from_published({k.removeprefix("model."): v for k, v in weights.items()})


def detections(model: nn.Module, record: dict[str, Any]) -> Instances:
    """One image's detections, best first."""
    with torch.no_grad():
        found = model.eval()([record])[0]["instances"]
    return found[found.scores.argsort(descending=True, stable=True)]


def step(
    model: nn.Module, batch: list[dict[str, Any]], *, noise: bool
) -> tuple[dict[str, float], dict[str, torch.Tensor], float]:
    """Losses of one training pass, gradients under every name of their weights, their norm."""
    model.train()
    if not noise:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        if hasattr(model, "dn_number"):
            model.dn_number = 0
        for owner in (model, getattr(model, "denoising_generator", None)):
            if hasattr(owner, "label_noise_prob"):  # DN-Deformable DETR
                owner.label_noise_prob = owner.box_noise_scale = 0.0
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    losses = model(batch)
    sum(losses.values()).backward()
    named = model.named_parameters(remove_duplicate=False)
    gradients = {name: weight.grad for name, weight in named if weight.grad is not None}
    norm = nn.utils.get_total_norm([w.grad for w in model.parameters() if w.grad is not None])
    return {name: float(loss) for name, loss in losses.items()}, gradients, float(norm)


def furthest(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, str]:
    """The largest relative difference of equal keys, and whose it is."""
    found = (0.0, "")
    for name in one.keys() & other.keys():
        a, b = torch.as_tensor(one[name]), torch.as_tensor(other[name])
        size = max(float(a.abs().max()), 1e-12)
        found = max(found, (float((a - b).abs().max()) / size, name))
    return found


def compare_steps(pair: Pair, *, noise: bool) -> dict[str, Any]:
    """Losses and gradients of one pass of both."""
    (losses, gradients, norm), (our_losses, our_gradients, our_norm) = (
        step(model, records(pair.sizes), noise=noise) for model in (pair.theirs, pair.ours)
    )
    for part, ours in pair.losses.items():
        losses = {name.replace(part, ours): value for name, value in losses.items()}
    gradients = pair.renamed(gradients)
    if lacking := gradients.keys() - our_gradients.keys():
        raise ValueError(f"no gradients here of {', '.join(sorted(lacking))}")
    return {
        "losses": furthest(losses, our_losses),
        "gradients": furthest(gradients, our_gradients),
        "norm": abs(norm - our_norm) / norm,
        "only_theirs": sorted(losses.keys() - our_losses.keys()),
        "only_ours": sorted(our_losses.keys() - losses.keys()),
    }


def have_equal_keys(theirs: Named, ours: Named) -> bool:
    """Whether names and shapes are the same, but for further names of a tensor that has one."""
    if any(k not in ours or v.shape != ours[k].shape for k, v in theirs.items()):
        return False
    shared = {ours[k].data_ptr() for k in theirs}
    return all(k in theirs or v.data_ptr() in shared for k, v in ours.items())


def compare(pair: Pair) -> dict[str, Any]:
    """One row."""
    found: dict[str, Any] = {"config": pair.config}
    states = (pair.renamed(pair.theirs.state_dict()), pair.ours.state_dict())
    found["keys"], found["equal_keys"] = len(states[0]), have_equal_keys(*states)
    # Checked above. Of heads with several names, from_published gives one.
    pair.ours.load_state_dict(states[0], strict=False)
    models = (pair.theirs, pair.ours)
    pairs = [[detections(m, record) for m in models] for record in records(pair.sizes)]
    found["scores"] = max(float((a.scores - b.scores).abs().max()) for a, b in pairs)
    found["boxes_px"] = max(
        float((a.pred_boxes.tensor - b.pred_boxes.tensor).abs().max()) for a, b in pairs
    )
    for noise in (True, False):  # switching it off stays
        found["noise" if noise else "quiet"] = compare_steps(pair, noise=noise)
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
    parser = parser_of(__doc__)
    parser.add_argument("--others", type=Path, help="folder with a checkout of Sparse DETR")
    parser.add_argument("names", nargs="*", help="rows; all that the file lacks by default")
    args, rows = rows_of(parser, "tests.upstream.parity", table)
    torch.set_default_dtype(torch.float64)
    Boxes.to = lambda boxes, *args, **options: boxes  # it would make them float32
    pairs = {
        name: functools.partial(of_detrex, name, path, args.detrex)
        for name, path in CONFIGS.items()
    }
    if args.others:
        pairs[SPARSE] = functools.partial(published_sparse_detr, args.others / "sparse_detr")
    for name in args.names or [name for name in pairs if name not in rows]:
        rows.keep(name, compare(pairs[name]()))


if __name__ == "__main__":
    main()
