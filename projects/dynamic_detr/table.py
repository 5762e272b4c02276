"""GFLOPs of Dynamic DETR: the paper's, ours counted, and ours by the method's formula.

``python tools/table.py dynamic_detr --write`` puts the tables into the pages.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from detectron2.config import instantiate
from omegaconf import DictConfig

from dynamic_detr import TokenBudget, encoder_macs
from tokendetr.analysis.flops import BLENDED_SIZES, FlopReport, blended_flops, pyramid_shapes
from tokendetr.analysis.tables import Cell, Table
from tokendetr.config import zoo
from tokendetr.config.overrides import apply_overrides

__all__ = ["Cost", "Row", "dynamic_cost", "dense_cost", "tables"]

KEEP_RATIOS = (
    (0.4, 0.3, 0.2, 0.1),
    (0.5, 0.4, 0.3, 0.2),
    (0.6, 0.5, 0.4, 0.3),
    (0.7, 0.6, 0.5, 0.4),
    (0.8, 0.7, 0.6, 0.5),
)
_SPARSIFIER = "model.transformer.encoder.sparsifier"


@dataclass(frozen=True)
class Row:
    """A detector of the paper's tables.

    Attributes:
        name: as the tables print it.
        dense: name of the dense detector's config.
        dynamic: name of the config with Dynamic DETR.
        paper_dense: the paper's GFLOPs of the dense detector.
        paper_dynamic: the paper's GFLOPs per entry of ``KEEP_RATIOS``, or for the config's own
            ratios alone.
    """

    name: str
    dense: str
    dynamic: str
    paper_dense: float
    paper_dynamic: tuple[float, ...]


TABLE_6 = (
    Row(
        "Deformable DETR",
        "deformable_detr_r50_with_box_refinement_50ep",
        "dynamic_deformable_detr_r50_with_box_refinement_50ep",
        179.0,
        (107.9, 114.7, 122.9, 131.5, 140.0),
    ),
    Row(
        "DINO",
        "dino_r50_4scale_36ep",
        "dynamic_dino_r50_4scale_36ep",
        244.5,
        (132.6, 141.7, 159.3, 174.5, 189.5),
    ),
    Row(
        "DAB-Deformable DETR",
        "dab_deformable_detr_r50_two_stage_50ep",
        "dynamic_dab_deformable_detr_r50_two_stage_50ep",
        235.4,
        (120.1, 131.8, 146.2, 161.4, 176.4),
    ),
    Row(
        "DN-Deformable DETR",
        "dn_deformable_detr_r50_50ep",
        "dynamic_dn_deformable_detr_r50_50ep",
        231.3,
        (128.4, 139.8, 154.5, 169.6, 184.7),
    ),
    Row(
        "H-Deformable DETR",
        "h_deformable_detr_r50_two_stage_36ep",
        "dynamic_h_deformable_detr_r50_two_stage_36ep",
        234.8,
        (123.6, 135.3, 149.6, 164.8, 179.8),
    ),
)
OTHER_ROWS = (
    Row(
        "DINO, LVIS v1 (Table 2)",
        "dino_r50_4scale_lvis_12ep",
        "dynamic_dino_r50_4scale_lvis_12ep",
        247.1,
        (146.6,),
    ),
    Row(
        "DINO, VOC 2007 (Table 3)",
        "dino_r50_4scale_voc2007_12ep",
        "dynamic_dino_r50_4scale_voc2007_12ep",
        241.6,
        (135.2,),
    ),
    Row(
        "DINO, Swin-T (Table 4)",
        "dino_swin_tiny_224_4scale_12ep",
        "dynamic_dino_swin_tiny_224_4scale_12ep",
        252.3,
        (149.4,),
    ),
)


@dataclass(frozen=True)
class Cost:
    """GFLOPs of one forward pass on the mean COCO image.

    Attributes:
        total: of the whole detector, counted.
        encoder: of its encoder, counted.
        encoder_by_formula: of its encoder, computed from shapes and ratios alone.
    """

    total: float
    encoder: float
    encoder_by_formula: float

    @property
    def total_by_formula(self) -> float:
        """Total in which the formula's figure replaces the encoder's counted one."""
        return self.total - self.encoder + self.encoder_by_formula


def dense_cost(config: str) -> Cost:
    """Return the cost of a dense detector."""
    model = zoo.get_config(config).model
    return _cost(model, None)


def dynamic_cost(config: str, keep_ratios: tuple[float, ...] | None = None) -> Cost:
    """Return the cost of a detector with Dynamic DETR.

    Args:
        config: the config's name.
        keep_ratios: in place of the config's own, set as an override on the command line sets them.
    """
    cfg = zoo.get_config(config)
    if keep_ratios is not None:
        apply_overrides(cfg, [f"{_SPARSIFIER}.keep_ratios=[{','.join(map(str, keep_ratios))}]"])
    node = cfg.model.transformer.encoder.sparsifier
    budget = TokenBudget(
        tuple(node.keep_ratios),
        tuple(tuple(order) for order in node.level_orders),
        tuple(node.stage_lengths),
        tuple(node.window_sizes),
    )
    return _cost(cfg.model, budget)


def _cost(model: DictConfig, budget: TokenBudget | None) -> Cost:
    model.device = "cpu"
    report: FlopReport = blended_flops(instantiate(model).eval(), arithmetic=False)
    if report.uncounted:
        raise RuntimeError(f"operators without a rule: {dict(report.uncounted)}")
    encoder = model.transformer.encoder
    formula = sum(
        weight
        * encoder_macs(
            pyramid_shapes(*size),
            budget,
            num_layers=encoder.num_layers,
            embed_dim=encoder.embed_dim,
            feedforward_dim=encoder.feedforward_dim,
            num_heads=encoder.num_heads,
        )
        for weight, size in BLENDED_SIZES
    )
    return Cost(report.total / 1e9, report.by_part["encoder"] / 1e9, formula / 1e9)


def tables() -> Iterator[Table]:
    """Yield the paper's Table 6 with the dense detectors (Table 1), then rows of Tables 2 to 4."""
    titles = {
        "gflops": "GFLOPs of DINO, ResNet-50, in the paper's Tables 1 and 6. Keep ratios are "
        "overrides of the config.",
        "gflops_detectors": "GFLOPs of the other detectors in the paper's Tables 1 and 6.",
    }
    for name, title in titles.items():
        chosen = [row for row in TABLE_6 if (row.name == "DINO") == (name == "gflops")]
        cells = [cell for row in chosen for cell in _cells(row, KEEP_RATIOS)]
        yield Table(name=name, title=title, columns=_COLUMNS, rows=cells)
    yield Table(
        name="gflops_other",
        title="GFLOPs of the paper's Tables 2 to 4.",
        columns=_COLUMNS,
        rows=[cells for row in OTHER_ROWS for cells in _cells(row, KEEP_RATIOS[1:2])],
        notes=[
            "The paper's figures are means over images of their own data sets, ours over COCO's."
        ],
    )


_COLUMNS = (
    "detector",
    "keep ratios",
    "the paper's",
    "ours, counted",
    "ours, by formula",
    "counted - paper's",
    "share of dense",
    "encoder, counted",
    "encoder, by formula",
)


def _cells(row: Row, ratios: tuple[tuple[float, ...], ...]) -> Iterator[list[Cell]]:
    dense = dense_cost(row.dense)
    costs = [("dense", row.paper_dense, dense)]
    for keep_ratios, paper in zip(ratios, row.paper_dynamic, strict=True):
        label = " ".join(f"{ratio:.1f}".lstrip("0") for ratio in keep_ratios)
        costs.append((label, paper, dynamic_cost(row.dynamic, keep_ratios)))
    for label, paper, cost in costs:
        yield [
            row.name,
            label,
            paper,
            cost.total,
            cost.total_by_formula,
            f"{round(cost.total - paper, 1) + 0.0:+.1f}",
            f"{cost.total / dense.total:.0%}",
            cost.encoder,
            cost.encoder_by_formula,
        ]
