"""GFLOPs of transformed models beside the paper's figures (``tools/table.py token_transforming``).

Counts depend on shapes alone, so models are built on PyTorch's meta device, without memory, and no
value is computed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling.backbone import SwinTransformer
from torch import nn

from token_transforming import restore, transform
from tokendetr.analysis.flops import count_flops
from tokendetr.analysis.tables import Cell, Table
from tokendetr.compat.meta import meta_device

TOLERANCE = 0.02
SWIN_LARGE: dict[str, Any] = {
    "pretrain_img_size": 384,
    "embed_dim": 192,
    "depths": (2, 2, 18, 2),
    "num_heads": (6, 12, 24, 48),
    "window_size": 12,
}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        model: its name.
        build: builds the model.
        size: height and width of the image.
        options: of :func:`token_transforming.transform`, None for the dense model.
        published: the paper's GFLOPs.
        note: reason if ours differ by more than :data:`TOLERANCE`.
    """

    model: str
    build: Callable[[], nn.Module]
    size: tuple[int, int]
    options: dict[str, Any] | None
    published: float
    note: str = ""


class _OfImages(nn.Module):
    """Adapter that calls a model of image tensors with detectron2's list of records."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, records: Sequence[dict[str, torch.Tensor]]) -> Any:
        """Run on one image."""
        return self.model(records[0]["image"][None])


def gflops(model: nn.Module, size: tuple[int, int]) -> float:
    """Return the GFLOPs of one image on a model that was built on the meta device."""
    image = torch.empty(3, *size, device="meta")
    return count_flops(_OfImages(model), [{"image": image}]).total / 1e9


def _vit(channels: int, layers: int = 12, patch: int = 16) -> Callable[[], Any]:
    def build() -> Any:
        from transformers import ViTConfig, ViTForImageClassification

        settings: dict[str, Any] = {
            "hidden_size": channels,
            "num_hidden_layers": layers,
            "num_attention_heads": 16 if channels == 1280 else channels // 64,
            "intermediate_size": 4 * channels,
            "patch_size": patch,
            "num_labels": 1000,
        }
        return ViTForImageClassification(ViTConfig(**settings))

    return build


def _dpt() -> Any:
    from transformers import DPTConfig, DPTForDepthEstimation

    return DPTForDepthEstimation(
        DPTConfig(is_hybrid=True, image_size=560, neck_hidden_sizes=[256, 512, 768, 768])
    )


def _swin() -> nn.Module:
    return SwinTransformer(**SWIN_LARGE)


def _thirds(keep_ratio: float) -> dict[str, Any]:
    return {"layers": (3, 6, 9), "keep_ratio": keep_ratio}


_SQUARE = (224, 224)
CLASSIFIERS = (
    Row("DeiT-S", _vit(384), _SQUARE, None, 4.6),
    Row("DeiT-S", _vit(384), _SQUARE, _thirds(0.7), 3.0),
    Row("DeiT-S", _vit(384), _SQUARE, _thirds(0.6), 2.6),
    Row("ViT-Ti", _vit(192), _SQUARE, None, 1.3, "1.26 rounds to the paper's 1.3"),
    Row("ViT-Ti", _vit(192), _SQUARE, _thirds(0.67), 0.8),
    Row("ViT-S", _vit(384), _SQUARE, _thirds(0.62), 2.7),
    Row("ViT-B", _vit(768), _SQUARE, None, 17.6),
    Row("ViT-B", _vit(768), _SQUARE, _thirds(0.7), 11.4),
    Row("ViT-H/14", _vit(1280, 32, 14), _SQUARE, None, 167.4),
    Row(
        "ViT-H/14",
        _vit(1280, 32, 14),
        _SQUARE,
        {"layers": (8, 16, 24), "keep_ratio": 0.6},
        92.9,
    ),
)
_SCALED = (
    "the paper's are for 480 x 640 pixels, and transformers' DPT takes only square images; "
    "at as many pixels, ours would be"
)
DEPTH = (
    Row(
        "DPT hybrid",
        _dpt,
        (560, 560),
        None,
        280,
        f"{_SCALED} 286.3 (2.3 % more), and 280.4 without the readout projections and the "
        "reassembling convolutions; whether the paper left them out is not known",
    ),
    Row(
        "DPT hybrid, transformed",
        _dpt,
        (560, 560),
        {"layers": (1, 3, 5), "keep_ratio": 0.6},
        200,
        f"{_SCALED} 207.8, and 201.9 without the same: 78.5 are saved, in the paper 80",
    ),
)
_WINDOWS = {"layers": (12,), "keep_ratio": 64 / 144}
DETECTION = (
    Row("Swin-L, dense", _swin, (1152, 1152), None, 936),
    Row("Swin-L, Hourglass", _swin, (1152, 1152), {**_WINDOWS, "method": "clustering"}, 746),
    Row("Swin-L, transformed", _swin, (1152, 1152), _WINDOWS, 734),
    Row("Swin-L, pruned", _swin, (1152, 1152), {**_WINDOWS, "method": "pruning"}, 734),
    Row("Swin-L, merged", _swin, (1152, 1152), {**_WINDOWS, "method": "merging"}, 734),
)


def measure(row: Row) -> float:
    """Return a row's GFLOPs."""
    with meta_device():
        model = row.build().eval()
    if row.options is not None:
        transform(model, **row.options)
    counted = gflops(model, row.size)
    restore(model)
    return counted


def table_of(name: str, title: str, rows: Sequence[Row]) -> Table:
    """Count the rows' GFLOPs and put them beside the paper's figures."""
    cells: list[list[Cell]] = []
    notes = []
    for row in rows:
        ours = measure(row)
        difference = ours / row.published - 1
        options = row.options or {}
        where = ", ".join(map(str, options.get("layers", ()))) or None
        keep = f"{options['keep_ratio']:.3g}" if options else None
        cells.append(
            [row.model, where, keep, f"{ours:.2f}", row.published, f"{100 * difference:+.1f} %"]
        )
        if abs(difference) > TOLERANCE:
            notes.append(f"{row.model}: {row.note or 'the paper rounds to one decimal'}.")
    columns = (
        "model",
        "blocks that reduce (from 0)",
        "kept",
        "GFLOPs",
        "the paper's",
        "difference",
    )
    return Table(name, title, columns, cells, notes)


def tables() -> Iterable[Table]:
    """Yield the tables of the README and of the page of measurements."""
    yield table_of(
        "flops-detection",
        "The backbone of Table 4 at 1152 x 1152 pixels. Pruning and merging stand beside the "
        "paper's figure for its own method.",
        DETECTION,
    )
    yield table_of(
        "flops-classification",
        "Tables 1 and 2's models at 224 x 224 pixels. The paper does not say which blocks reduce; "
        "these are ours.",
        CLASSIFIERS,
    )
    yield table_of(
        "flops-depth",
        "Table 3's model; the tokens are restored where the head reads them (blocks 8 and 11).",
        DEPTH,
    )
