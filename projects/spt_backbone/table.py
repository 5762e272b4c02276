"""GFLOPs and parameters of SPT beside the paper's (arXiv 2410.23608, tables 1, 2, 3 and 8)."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.modeling.backbone import SwinTransformer
from torch import Tensor, nn

from spt_backbone import SPT
from spt_backbone.flops import BackboneShape, backbone_macs, backbone_parameters
from spt_backbone.mask_rcnn import mask_rcnn_macs, mask_rcnn_parameters
from tokendetr.analysis.flops import count_flops, synthetic_inputs
from tokendetr.analysis.tables import Cell, Table

SIZE = (800, 1280)
WIDTHS = {"T": 96, "S": 96, "B": 128}
HEADS = {"T": (3, 6, 12, 24), "S": (3, 6, 12, 24), "B": (4, 8, 16, 32)}
SWIN_DEPTHS = {"T": (2, 2, 6, 2), "S": (2, 2, 18, 2), "B": (2, 2, 18, 2)}
EXTRA_BLOCKS = 4
RATIOS = (0.0, 0.25, 0.5, 1.0)

PAPER_SWIN = {"T": (96, 267, 48), "S": (188, 359, 69), "B": (332, 508, 107)}
"""The paper's backbone and total GFLOPs and million parameters of dense Mask R-CNN; B's on
BDD100K, as on COCO it is a Cascade Mask R-CNN."""

PAPER_SPT: tuple[tuple[str, str, int, int, int, float | None], ...] = (
    ("T", "COCO", 90, 261, 55, None),
    ("T", "BDD100K", 84, 255, 55, 0.24),
    ("T", "BDD-S", 80, 251, 55, 0.33),
    ("S", "COCO", 171, 342, 76, None),
    ("S", "BDD100K", 155, 326, 76, None),
    ("S", "BDD-S", 149, 320, 76, None),
    ("B", "BDD100K", 256, 432, 115, None),
    ("B", "COCO (Cascade)", 294, 944, 153, None),
)
"""Size, data, the paper's backbone and total GFLOPs, million parameters, and the select ratio it
reports (BDD100K: the mean of stages 3 and 4 in its table 6; BDD-S: appendix B.1)."""

PAPER_TABLE_8 = {"T/12": (22.3, 48, 62), "T/16": (22.6, 55, 58)}


def shape_of(size: str, *, extra_blocks: int | None) -> BackboneShape:
    """Return SPT with this many extra blocks in stage 3, or the dense Swin for None."""
    depths = list(SWIN_DEPTHS[size])
    depths[2] += extra_blocks or 0
    return BackboneShape(WIDTHS[size], depths, start_stage=None if extra_blocks is None else 3)


def variant(size: str, extra_blocks: int) -> str:
    """Return a name such as ``SPT-T/16``: the number after the slash counts all blocks."""
    return f"SPT-{size}/{sum(SWIN_DEPTHS[size]) + extra_blocks}"


def giga(macs: float) -> float:
    """Return multiply-adds in units of 10^9."""
    return macs / 1e9


def backbone_giga(shape: BackboneShape, ratio: float = 1.0, **options: Any) -> float:
    """Return GFLOPs of a backbone whose selecting stages all select the same share of tokens."""
    return giga(backbone_macs(shape, *SIZE, dict.fromkeys((3, 4), ratio), **options))


def heads_giga(size: str, *, cascade: bool = False) -> float:
    """Return GFLOPs of the rest of (Cascade) Mask R-CNN."""
    channels = [WIDTHS[size] * 2**stage for stage in range(4)]
    return giga(mask_rcnn_macs(*SIZE, channels, cascade=cascade))


class BackboneAlone(nn.Module):
    """A backbone that is called like a detector, for counting."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batched_inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the features of a batch of equal images."""
        return self.backbone(torch.stack([record["image"] for record in batched_inputs]))


def counted_giga(size: str, *, extra_blocks: int | None, ratio: float = 1.0) -> float:
    """Return GFLOPs of a built backbone, counted operator by operator without computing values."""
    shape = shape_of(size, extra_blocks=extra_blocks)
    options: dict[str, Any] = {
        "embed_dim": shape.embed_dim,
        "depths": tuple(shape.depths),
        "num_heads": HEADS[size],
        "window_size": shape.window_size,
    }
    backbone = (
        SwinTransformer(**options) if extra_blocks is None else SPT(**options, keep_ratio=ratio)
    )
    report = count_flops(BackboneAlone(backbone), synthetic_inputs(*SIZE), arithmetic=False)
    return giga(report.total)


def parameters(size: str, shape: BackboneShape, *, cascade: bool = False) -> float:
    """Return million parameters of the whole (Cascade) Mask R-CNN."""
    channels = [shape.embed_dim * 2**stage for stage in range(4)]
    rest = mask_rcnn_parameters(channels, cascade=cascade)
    return (backbone_parameters(shape, HEADS[size]) + rest) / 1e6


def implied_ratio(size: str, extra_blocks: int, target: float) -> str:
    """Return the select ratio at which a backbone has the paper's GFLOPs, or why none does."""
    shape = shape_of(size, extra_blocks=extra_blocks)
    least, most = (backbone_giga(shape, ratio, project_all=True) for ratio in (0.0, 1.0))
    if target < least:
        return f"none: {least:.1f} at 0"
    if target > most:
        return f"none: {most:.1f} at 1"
    return f"{(target - least) / (most - least):.2f}"


def dense_table() -> Table:
    """Return the table of dense backbones, which shows how the paper counts."""
    rows: list[list[Cell]] = []
    for size, (backbone, total, millions) in PAPER_SWIN.items():
        shape = shape_of(size, extra_blocks=None)
        analytic = backbone_giga(shape)
        rows.append(
            [
                f"Swin-{size}",
                analytic,
                counted_giga(size, extra_blocks=None),
                backbone,
                f"{100 * (analytic / backbone - 1):+.1f} %",
                analytic + heads_giga(size),
                total,
                parameters(size, shape),
                millions,
            ]
        )
    return Table(
        "dense",
        f"Dense Swin under Mask R-CNN at {SIZE[1]} x {SIZE[0]}, GFLOPs (a multiply-add counts 1) "
        "and million parameters.",
        (
            "backbone",
            "GFLOPs, formula",
            "counted",
            "paper",
            "difference",
            "total",
            "paper's total",
            "parameters",
            "paper's",
        ),
        rows,
        (
            "Windows at the border are padded to 7 x 7 and computed; attention products and norms "
            f"count. Without that padding Swin-T is {no_padding('T'):.1f}.",
            "The total adds detectron2's pyramid, proposal network, 1000 boxes and 100 masks of 80 "
            "classes. The paper's Swin-B row is its Mask R-CNN on BDD100K, whose total has "
            "176 GFLOPs beside the backbone instead of 171 for T and S; Swin-B's wider outputs "
            "explain 1 of the 5.",
        ),
    )


def no_padding(size: str) -> float:
    """Return a dense backbone's GFLOPs without the padding of windows."""
    return backbone_giga(shape_of(size, extra_blocks=None), window_padding=False)


def spt_table() -> Table:
    """Return the table of SPT's backbones at fixed select ratios."""
    rows: list[list[Cell]] = []
    for size in WIDTHS:
        for extra in (EXTRA_BLOCKS, 0):
            shape = shape_of(size, extra_blocks=extra)
            rows.append(
                [
                    variant(size, extra),
                    *(backbone_giga(shape, ratio) for ratio in RATIOS),
                    counted_giga(size, extra_blocks=extra, ratio=0.25),
                    *(backbone_giga(shape, ratio, project_all=True) for ratio in (0.0, 1.0)),
                    backbone_giga(shape, 0.25) + heads_giga(size),
                    parameters(size, shape),
                ]
            )
    columns = [f"ratio {ratio:g}" for ratio in RATIOS]
    return Table(
        "spt",
        f"SPT's backbone at {SIZE[1]} x {SIZE[0]}, GFLOPs by select ratio of stages 3 and 4; "
        "total GFLOPs and million parameters under Mask R-CNN.",
        (
            "backbone",
            *columns,
            "counted at 0.25",
            "equation 9 at 0",
            "equation 9 at 1",
            "total at 0.25",
            "parameters",
        ),
        rows,
        (
            "The output projection is computed for selected tokens; the others get its bias, which "
            "is the same result. Equation 9 counts it for all tokens.",
            "Feed-forward networks work on all tokens, as the paper describes.",
        ),
    )


def paper_table() -> Table:
    """Return the paper's figures beside the GFLOPs of the model that it describes."""
    rows: list[list[Cell]] = []
    for size, data, backbone, total, millions, ratio in PAPER_SPT:
        cascade = "Cascade" in data
        extended = shape_of(size, extra_blocks=EXTRA_BLOCKS)
        at_ratio = None if ratio is None else backbone_giga(extended, ratio)
        rows.append(
            [
                f"SPT-{size}, {data}",
                backbone,
                total,
                millions,
                None if ratio is None else f"{ratio:.2f}",
                at_ratio,
                None if at_ratio is None else at_ratio + heads_giga(size, cascade=cascade),
                parameters(size, extended, cascade=cascade),
                implied_ratio(size, EXTRA_BLOCKS, backbone),
                implied_ratio(size, 0, backbone),
            ]
        )
    return Table(
        "paper",
        "The paper's tables 1 to 3: its backbone and total GFLOPs, million parameters and select "
        "ratio, ours for the depth it describes at that ratio, and the ratio at which a backbone "
        "with and without the four extra blocks would cost what it says (equation 9).",
        (
            "model, data",
            "paper's backbone",
            "paper's total",
            "paper's parameters",
            "reported ratio",
            "ours at it",
            "our total",
            "our parameters",
            "ratio with extra blocks",
            "ratio without",
        ),
        rows,
        paper_notes(),
    )


def paper_notes() -> tuple[str, ...]:
    """Return notes on figures that cannot follow from the paper's description."""
    least = {
        size: backbone_giga(shape_of(size, extra_blocks=EXTRA_BLOCKS), 0.0, project_all=True)
        for size in WIDTHS
    }
    grown = parameters("B", shape_of("B", extra_blocks=EXTRA_BLOCKS)) - parameters(
        "B", shape_of("B", extra_blocks=0)
    )
    return (
        "With four extra blocks in stage 3 and feed-forward networks on all tokens, nothing "
        f"selected costs {least['T']:.1f}, {least['S']:.1f} and {least['B']:.1f} GFLOPs for T, S "
        "and B by equation 9: none of the figures for T, none of S's on BDD100K and BDD-S and not "
        "B's on BDD100K can follow from the description. Without the extra blocks all can, at "
        "ratios other than the reported ones.",
        "Parameters of T and S fit the extra blocks. For B they add "
        f"{grown:.1f} million, where the paper has 8.",
        "The total of the Cascade Mask R-CNN is that of detectron2's, with one mask head and box "
        "heads of two linear layers; the paper's has 650 GFLOPs beside its backbone.",
        "A dash: the paper reports no select ratio for that row. BDD100K: mean of stages 3 and 4 "
        "in its table 6; BDD-S: its appendix B.1.",
    )


def light_table() -> Table:
    """Return the paper's table 8, the light variant."""
    rows: list[list[Cell]] = []
    for extra in (0, EXTRA_BLOCKS):
        name = variant("T", extra)
        shape = shape_of("T", extra_blocks=extra)
        precision, millions, speed = PAPER_TABLE_8[name.removeprefix("SPT-")]
        rows.append([name, f"{parameters('T', shape):.1f}", millions, f"{precision:.1f}", speed])
    return Table(
        "light",
        "The paper's table 8 (BDD100K; its AP, million parameters and images per second on an "
        "NVIDIA L40S) beside our parameters.",
        ("backbone", "parameters", "paper's", "paper's AP", "paper's FPS"),
        rows,
    )


def tables() -> Iterator[Table]:
    """Yield all tables."""
    yield dense_table()
    yield spt_table()
    yield paper_table()
    yield light_table()
