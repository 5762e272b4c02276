"""GFLOPs of Lite DETR: the papers' figures, and ours counted.

python tools/table.py lite_detr
"""

from collections.abc import Iterator

from detectron2.config import instantiate
from torch import nn

from tokendetr.analysis.flops import blended_flops
from tokendetr.analysis.tables import Table
from tokendetr.config import zoo
from tokendetr.config.overrides import apply_overrides

_SPARSIFIER = "model.transformer.encoder.sparsifier"
ROWS = (  # title, config, overrides, the papers' GFLOPs
    ("DINO, H3L1-(2+1)x3", "lite_dino_r50_4scale_36ep", (), 151),
    (
        "DINO, H2L2-(2+1)x3",
        "lite_dino_r50_4scale_36ep",
        (f"{_SPARSIFIER}.high_levels=2",),
        None,
    ),
    ("DINO, H3L1-(6+1)x1", "lite_dino_r50_4scale_36ep", (f"{_SPARSIFIER}.num_blocks=1",), None),
    ("DINO, Swin-T, H3L1-(2+1)x3", "lite_dino_swin_tiny_224_4scale_12ep", (), None),
)


def build(config: str, overrides: tuple[str, ...] = ()) -> nn.Module:
    """Build a config's model with random weights on the CPU."""
    cfg = zoo.get_config(config)
    apply_overrides(cfg, list(overrides))
    cfg.model.device = "cpu"
    model: nn.Module = instantiate(cfg.model).eval()
    return model


def tables() -> Iterator[Table]:
    """Yield the table of GFLOPs."""
    rows = []
    for title, config, overrides, paper in ROWS:
        model = build(config, overrides)
        report = blended_flops(model)
        gflops, encoder = report.total / 1e9, report.by_part["encoder"] / 1e9
        parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        rows.append((title, gflops, encoder, "" if paper is None else str(paper), parameters))
    yield Table(
        name="gflops",
        title="GFLOPs of Lite DETR",
        columns=("detector", "GFLOPs", "in the encoder", "Dynamic DETR's table", "M params"),
        rows=rows,
        notes=(
            "Counted at 800 x 1066 and 850 x 1040 pixels, blended .225 / .775 to the mean over "
            "COCO; a multiply-add counts 1.",
        ),
    )
