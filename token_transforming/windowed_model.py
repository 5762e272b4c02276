"""Transform, and restore, windowed backbones (detectron2's Swin and Hugging Face's)."""

from typing import Any

from torch import nn

from token_transforming.classes import original_class, transformed_class
from token_transforming.recovery import add_maps, remove_maps
from token_transforming.report import TransformReport, check_layers
from token_transforming.settings import Reduction
from token_transforming.windowed import WindowPlan
from token_transforming.windowed_families import TransformedStage, WindowedFamily
from token_transforming.windows import WINDOW_BIASES, WindowBias
from tokendetr.errors import check_choice


def transform_windowed(
    backbone: Any,
    family: WindowedFamily,
    name: str,
    layers: tuple[int, ...],
    reductions: tuple[Reduction, ...],
    window_bias: WindowBias,
) -> TransformReport:
    """Make the stages of a Swin reduce tokens within windows; each restores them at its end.

    Args:
        backbone: the backbone.
        family: its family.
        name: its name for the report.
        layers: blocks that reduce, counted over all stages.
        reductions: one for each layer.
        window_bias: see :func:`token_transforming.transform`.

    Raises:
        ValueError: blocks that it does not have, or whose windows are shifted.
    """
    check_choice("window_bias", window_bias, WINDOW_BIASES)
    places: list[tuple[Any, int]] = [
        (stage, block)
        for stage in family.stages(backbone)
        for block in range(len(stage.blocks))  # type: ignore[arg-type]
    ]
    check_layers(layers, len(places), backbone)
    plans: dict[Any, dict[int, Reduction]] = {}
    for layer, reduction in zip(layers, reductions, strict=True):
        stage, block = places[layer]
        if family.blocks.is_shifted(stage.blocks[block]):
            raise ValueError(
                f"block {layer} of {type(backbone).__name__} has shifted windows; reduce at one "
                f"that has none, such as {layer - 1}"
            )
        if reduction.removed is not None:
            raise ValueError(
                f"removed counts the tokens of an image; {type(backbone).__name__} reduces within "
                "windows: give keep_ratio"
            )
        if reduction.selection == "class_attention":
            raise ValueError(
                f"selection='class_attention' needs a class token; {type(backbone).__name__} has "
                "none: use 'attention' or 'uniform'"
            )
        plans.setdefault(stage, {})[block] = reduction
        add_maps(stage.blocks[block], family.blocks.norm(stage.blocks[block]), reduction)
    for stage, by_block in plans.items():
        stage.token_plan = WindowPlan(by_block, window_bias)
        stage.__class__ = transformed_class(type(stage), family.stage)
    return TransformReport(
        model=type(backbone).__name__,
        name=name,
        num_layers=len(places),
        layers=layers,
        reductions=reductions,
        prefix=0,
        restored=True,
    )


def restore_windowed(backbone: nn.Module, family: WindowedFamily) -> None:
    """Restore the classes of a backbone's stages."""
    for stage in family.stages(backbone):
        if isinstance(stage, TransformedStage):
            del stage.token_plan
            blocks: Any = stage.blocks
            for block in blocks:
                remove_maps(block)
            stage.__class__ = original_class(type(stage))
