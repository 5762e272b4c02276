"""GFLOPs of Sparse DETR: the papers' figures, and ours counted.

``python tools/table.py sparse_detr --write`` puts the tables into the pages.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import instantiate
from torch import nn

from sparse_detr import SparseSparsifier
from tokendetr.analysis.flops import blended_flops, count_flops, synthetic_inputs
from tokendetr.analysis.tables import Table
from tokendetr.config import zoo
from tokendetr.encoder import set_keep_ratio

__all__ = ["KEEP_RATIOS", "Row", "costs", "deployed_parameters", "tables"]

KEEP_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
SPARSE_PAPER_SIZE = (800, 1066)
"""Height and width of the image for which the Sparse DETR paper gives its sparse rows."""


@dataclass(frozen=True)
class Row:
    """A detector of the papers' tables.

    Attributes:
        name: as the tables print it.
        config: name of its config.
        paper: published GFLOPs, one per keep ratio from .1 on.
        blended: True if the published figures are means over COCO's images, False if they are
            those of one image of :data:`SPARSE_PAPER_SIZE`.
    """

    name: str
    config: str
    paper: tuple[float, ...]
    blended: bool = False


DEFORMABLE = Row(
    "Deformable DETR, R-50", "sparse_deformable_detr_r50_50ep", (105, 113, 121, 128, 136)
)
ROWS = (
    DEFORMABLE,
    Row(
        "Deformable DETR, Swin-T",
        "sparse_deformable_detr_swin_tiny_50ep",
        (113, 121, 129, 136, 144),
    ),
    Row("Deformable DETR, Swin-B", "sparse_deformable_detr_swin_base_50ep", (335, 343, 350, 358)),
    Row("DINO, R-50", "sparse_dino_r50_4scale_36ep", (126, 139, 152, 166, 181), blended=True),
)


DENSE_PAPER_SIZE = (850, 1040)
"""Height and width of the image for which the paper gives its dense rows. It is larger than that of
its sparse rows, because the paper's benchmark prints the figure of the last image that it read."""
DENSE_ROWS = (  # name, config, the paper's GFLOPs, size
    ("Deformable DETR", "deformable_detr_r50_50ep", 173, DENSE_PAPER_SIZE),
    ("Deformable DETR+ (100 %)", "deformable_detr_r50_dense_50ep", 177, DENSE_PAPER_SIZE),
    ("without encoder (0 %)", "deformable_detr_r50_no_encoder_50ep", 91, SPARSE_PAPER_SIZE),
)


def build(config: str) -> nn.Module:
    """Return a config's model on the CPU, with random weights, in evaluation mode."""
    cfg = zoo.get_config(config)
    cfg.model.device = "cpu"
    torch.manual_seed(0)
    model: nn.Module = instantiate(cfg.model).eval()
    return model


def _sparsifier(model: nn.Module) -> SparseSparsifier:
    found = model.get_submodule("transformer.encoder.sparsifier")
    assert isinstance(found, SparseSparsifier)
    return found


def costs(model: nn.Module, keep_ratios: Iterable[float], *, blended: bool) -> list[float]:
    """Count a detector's GFLOPs at several keep ratios.

    Args:
        model: detector with Sparse DETR's sparsifier, whose keep ratio this changes.
        keep_ratios: as :attr:`sparse_detr.SparseSparsifier.keep_ratio`.
        blended: as :attr:`Row.blended`.
    """
    found = []
    for ratio in keep_ratios:
        set_keep_ratio(model, ratio)
        if blended:
            report = blended_flops(model)
        else:
            inputs = synthetic_inputs(*SPARSE_PAPER_SIZE)
            report = count_flops(model, inputs, arithmetic=False)
        found.append(report.total / 1e9)
    return found


def deployed_parameters(model: nn.Module) -> tuple[int, int]:
    """Return how many parameters evaluation uses, and how many of them training may change.

    The encoder's auxiliary heads, which only training uses, are left out as in the paper's count.
    """
    sparsifier = _sparsifier(model)
    heads = {*sparsifier.class_embed.parameters(), *sparsifier.bbox_embed.parameters()}
    used = [parameter for parameter in model.parameters() if parameter not in heads]
    trained = [parameter for parameter in used if parameter.requires_grad]
    return sum(p.numel() for p in used), sum(p.numel() for p in trained)


def _cells(row: Row) -> list[tuple[str, float, float, float, float]]:
    model = build(row.config)
    trained = deployed_parameters(model)[1] / 1e6
    ratios = KEEP_RATIOS[: len(row.paper)]
    return [
        (row.name, ratio, ours, paper, trained)
        for ratio, ours, paper in zip(
            ratios, costs(model, ratios, blended=row.blended), row.paper, strict=True
        )
    ]


def operations(name: str, rows: Sequence[Row]) -> Table:
    """Return the table of operations of some detectors."""
    cells: list[Sequence[str | float]] = [
        (title, f"{ratio:.1f}", ours, f"{paper:.0f}", f"{100 * (ours / paper - 1):+.1f} %", trained)
        for row in rows
        for title, ratio, ours, paper, trained in _cells(row)
    ]
    notes = (
        "Deformable DETR at 800 x 1066 pixels, the size of the paper's sparse rows; DINO on the "
        "blend of two sizes that stands for the mean over COCO (the figures for DINO are "
        "Focus-DETR's).",
        "Parameters without the encoder's heads, which exist in training only.",
    )
    return Table(
        name=name,
        title="GFLOPs of one image in evaluation (a multiply-add counts 1).",
        columns=(
            "detector",
            "keep ratio",
            "ours",
            "the paper's",
            "difference",
            "trained parameters (M)",
        ),
        rows=cells,
        notes=notes,
    )


def tables() -> Iterator[Table]:
    """Yield the tables of operations: ResNet-50, Swin Transformers, the paper's dense rows."""
    yield operations("gflops", [row for row in ROWS if "R-50" in row.name])
    yield operations("gflops_swin", [row for row in ROWS if "Swin" in row.name])
    yield Table(
        name="dense",
        title="The paper's rows of 100 % and 0 %, ResNet-50 (its Tables 1 and 3).",
        columns=("detector", "image", "GFLOPs", "the paper's", "at 800 x 1066"),
        rows=[dense_cells(*row) for row in DENSE_ROWS],
        notes=(
            "The paper counts its dense rows on a larger image than its sparse rows. Compare the "
            "sparse rows with the last column, which is counted on an image of their size.",
        ),
    )


def dense_cells(
    name: str, config: str, paper: int, size: tuple[int, int]
) -> tuple[str, str, float, str, float]:
    """Return a row: GFLOPs at the size of the paper's figure, and at that of its sparse rows."""
    model = build(config)
    own, common = (
        count_flops(model, synthetic_inputs(*each), arithmetic=False).total / 1e9
        for each in (size, SPARSE_PAPER_SIZE)
    )
    return name, f"{size[0]} x {size[1]}", own, str(paper), common
