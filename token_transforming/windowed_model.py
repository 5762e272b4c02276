"""Transform, and restore, windowed backbones (detectron2's Swin)."""

from typing import Any

from detectron2.modeling.backbone import SwinTransformer
from torch import Tensor, nn

from token_transforming.classes import Transformed, original_class, transformed_class
from token_transforming.recovery import add_maps, remove_maps
from token_transforming.report import TransformReport, check_layers
from token_transforming.settings import Reduction, check_one_of
from token_transforming.windowed import WindowPlan, run_blocks
from token_transforming.windows import WINDOW_BIASES, WindowBias

WINDOWED = (SwinTransformer.__name__,)


class SwinBlocks:
    """Interface to Swin's blocks."""

    def window(self, block: Any) -> int:
        """Return the side of the block's windows."""
        return int(block.window_size)

    def is_shifted(self, block: Any) -> bool:
        """Return True if the block's windows are shifted."""
        return bool(block.shift_size > 0)

    def heads(self, block: Any, normed_GTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each [G, M, T, D]."""
        joint = block.attn.qkv(normed_GTC).unflatten(-1, (3, block.attn.num_heads, -1))
        query, key, value = joint.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def scale(self, block: Any) -> float:
        """Return the factor of the logits."""
        return float(block.attn.scale)

    def bias_table(self, block: Any) -> Tensor:
        """Return the bias [M, 2h - 1, 2w - 1] of (query - key) offsets."""
        rows, columns = (2 * side - 1 for side in block.attn.window_size)
        table: Tensor = block.attn.relative_position_bias_table
        return table.view(rows, columns, -1).permute(2, 0, 1)

    def dropout(self, block: Any) -> float:
        """Return the probability of dropping an attention weight."""
        return float(block.attn.attn_drop.p) if block.training else 0.0

    def project(self, block: Any, out_GTC: Tensor) -> Tensor:
        """Return the attention's output projected."""
        projected_GTC: Tensor = block.attn.proj_drop(block.attn.proj(out_GTC))
        return projected_GTC


class TransformedStage(Transformed):
    """Mixin of a Swin stage's class while its backbone is transformed."""

    token_plan: WindowPlan

    def forward(
        self: Any, x_BNC: Tensor, height: int, width: int
    ) -> tuple[Tensor, int, int, Tensor, int, int]:
        """Run the stage with fewer tokens in its later blocks."""
        x_BHWC = run_blocks(
            self.blocks,
            x_BNC.unflatten(1, (height, width)),
            self.token_plan,
            SwinBlocks(),
            use_checkpoint=self.use_checkpoint,
        )
        x_BNC = x_BHWC.flatten(1, 2)
        if self.downsample is None:
            return x_BNC, height, width, x_BNC, height, width
        down = self.downsample(x_BNC, height, width)
        return x_BNC, height, width, down, (height + 1) // 2, (width + 1) // 2


def is_windowed(module: nn.Module) -> bool:
    """Return True for a supported windowed backbone; subclasses of Swin may work differently."""
    return type(module).__name__ in WINDOWED and isinstance(module, SwinTransformer)


def transform_windowed(
    backbone: Any,
    name: str,
    layers: tuple[int, ...],
    reductions: tuple[Reduction, ...],
    window_bias: WindowBias,
) -> TransformReport:
    """Make the stages of a Swin reduce tokens within windows; each restores them at its end.

    Args:
        backbone: the backbone.
        name: its name for the report.
        layers: blocks that reduce, counted over all stages.
        reductions: one for each layer.
        window_bias: see :func:`token_transforming.transform`.

    Raises:
        ValueError: blocks that it does not have, or whose windows are shifted.
    """
    check_one_of("window_bias", window_bias, WINDOW_BIASES)
    places = [(stage, block) for stage in backbone.layers for block in range(len(stage.blocks))]
    check_layers(layers, len(places), backbone)
    plans: dict[Any, dict[int, Reduction]] = {}
    for layer, how in zip(layers, reductions, strict=True):
        stage, block = places[layer]
        if SwinBlocks().is_shifted(stage.blocks[block]):
            raise ValueError(
                f"block {layer} of {type(backbone).__name__} has shifted windows; reduce at one "
                f"that has none, such as {layer - 1}"
            )
        if how.removed is not None:
            raise ValueError(
                f"removed counts the tokens of an image; {type(backbone).__name__} reduces within "
                "windows: give keep_ratio"
            )
        if how.selection == "class_attention":
            raise ValueError(
                f"selection='class_attention' needs a class token; {type(backbone).__name__} has "
                "none: use 'attention' or 'uniform'"
            )
        plans.setdefault(stage, {})[block] = how
        add_maps(stage.blocks[block], stage.blocks[block].norm1, how)
    for stage, by_block in plans.items():
        stage.token_plan = WindowPlan(by_block, window_bias)
        stage.__class__ = transformed_class(type(stage), TransformedStage)
    return TransformReport(
        model=type(backbone).__name__,
        name=name,
        num_layers=len(places),
        layers=layers,
        reductions=reductions,
        prefix=0,
        restored=True,
    )


def restore_windowed(backbone: Any) -> None:
    """Restore the classes of a backbone's stages."""
    for stage in backbone.layers:
        if isinstance(stage, TransformedStage):
            del stage.token_plan
            blocks: Any = stage.blocks  # type: ignore[attr-defined]
            for block in blocks:
                remove_maps(block)
            stage.__class__ = original_class(type(stage))
