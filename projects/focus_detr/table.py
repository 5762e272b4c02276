"""GFLOPs and parameters of Focus-DETR, counted, beside the paper's figures.

python tools/table.py focus_detr
"""

from collections.abc import Iterator
from pathlib import Path

from detectron2.config import LazyConfig, instantiate
from torch import nn

from tokendetr.analysis.flops import blended_flops, count_flops, synthetic_inputs
from tokendetr.analysis.tables import Table
from tokendetr.encoder import set_keep_ratio

PROJECTS = Path(__file__).resolve().parents[1]
ON_RESNETS = "focus_detr/configs/focus_detr_resnet"
FOCUS_DINO = f"{ON_RESNETS}/focus_detr_r50_4scale_36ep.py"
DINO_GFLOPS = {0.1: 128, 0.2: 141, 0.3: 154, 0.4: 169, 0.5: 183}
"""GFLOPs of the paper's Table 6 by mean keep ratio."""
ONE_SIZE = (800, 1066)
"""Height and width of the image for which the paper gives the GFLOPs of Deformable and
DN-Deformable DETR, as Sparse DETR's paper does; those of DINO are means over COCO's images."""
DETECTORS = (  # title, config, the paper's GFLOPs (Tables 2 and 3)
    ("DINO, ResNet-50", FOCUS_DINO, 154),
    (
        "DINO, ResNet-101",
        f"{ON_RESNETS}/focus_detr_r101_4scale_36ep.py",
        221,
    ),
    (
        "Deformable DETR, two-stage",
        "focus_detr/configs/focus_deformable_detr_r50_two_stage_50ep.py",
        123,
    ),
    (
        "Deformable DETR, learned queries",
        "focus_detr/configs/focus_deformable_detr_r50_50ep.py",
        120,
    ),
    (
        "DN-Deformable DETR, learned queries",
        "focus_detr/configs/focus_dn_deformable_detr_r50_50ep.py",
        138,
    ),
)


def build(config: str) -> nn.Module:
    """Build a project's model with random weights on the CPU."""
    node = LazyConfig.load(str(PROJECTS / config)).model
    node.device = "cpu"
    model: nn.Module = instantiate(node)
    return model


def million_parameters(model: nn.Module) -> float:
    """Return a model's parameters in millions."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def ratios() -> Table:
    """Return the table of Focus-DINO at the keep ratios of the paper's Table 6."""
    rows, model = [], build(FOCUS_DINO)
    for keep_ratio, paper in DINO_GFLOPS.items():
        set_keep_ratio(model, keep_ratio)
        report = blended_flops(model)
        gflops, encoder = report.total / 1e9, report.by_part["encoder"] / 1e9
        change = f"{100 * (gflops / paper - 1):+.1f} %"
        rows.append(
            (f"{keep_ratio:.1f}", gflops, encoder, paper, change, million_parameters(model))
        )
    return Table(
        name="keep_ratios",
        title="Focus-DINO, ResNet-50: GFLOPs by mean keep ratio",
        columns=("keep ratio", "GFLOPs", "in the encoder", "the paper's", "difference", "M params"),
        rows=rows,
        notes=(_COUNTING,),
    )


def detector_gflops(title: str, model: nn.Module) -> float:
    """Return a detector's GFLOPs at the image size of the paper's figure."""
    if title.startswith("DINO"):
        return blended_flops(model).total / 1e9
    return count_flops(model, synthetic_inputs(*ONE_SIZE), arithmetic=False).total / 1e9


def detectors() -> Table:
    """Return the table of all detectors at a mean keep ratio of .3."""
    rows = []
    for title, config, paper in DETECTORS:
        model = build(config)
        gflops = detector_gflops(title, model)
        size = "mean over COCO" if title.startswith("DINO") else "800 x 1066"
        change = f"{100 * (gflops / paper - 1):+.1f} %"
        rows.append((title, size, gflops, paper, change, million_parameters(model)))
    return Table(
        name="detectors",
        title="Focus-DETR in other detectors, mean keep ratio .3",
        columns=("detector", "images", "GFLOPs", "the paper's", "difference", "M params"),
        rows=rows,
        notes=(
            "A multiply-add counts 1. Means over COCO are counted at 800 x 1066 and 850 x 1040 "
            "pixels, blended .225 / .775; the paper's figures of the other detectors are those of "
            "one image of 800 x 1066 pixels.",
        ),
    )


_COUNTING = (
    "Counted at 800 x 1066 and 850 x 1040 pixels, blended .225 / .775 to the mean over COCO; a "
    "multiply-add counts 1."
)


def tables() -> Iterator[Table]:
    """Yield all tables; each is counted when the iterator reaches it."""
    yield ratios()
    yield detectors()
