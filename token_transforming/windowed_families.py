"""Supported windowed backbones: detectron2's Swin and Hugging Face's.

Shapes: B image, N token, C channel, H and W of a map, G windows of the whole batch, T tokens of a
window, M head, D head width, E entry of a table of relative positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from detectron2.modeling.backbone import SwinTransformer
from torch import Tensor, nn

from token_transforming.classes import Transformed
from token_transforming.windowed import WindowPlan, run_blocks
from token_transforming.windowed_blocks import WindowedBlocks
from tokendetr.layers.cpu.swin import adds_blocks

__all__ = ["WINDOWED_FAMILIES", "TransformedStage", "WindowedFamily", "windowed_family_of"]


class _Blocks:
    """What the blocks of both families have in common."""

    def window(self, block: Any) -> int:
        """Return the side of the block's windows."""
        return int(block.window_size)

    def is_shifted(self, block: Any) -> bool:
        """Return True if the block's windows are shifted."""
        return bool(block.shift_size > 0)


class DetectronBlocks(_Blocks):
    """Interface to the blocks of detectron2's Swin."""

    def is_fast(self, block: Any, x: Tensor) -> bool:
        """Return True if the block is optimized for evaluation on CPUs."""
        return adds_blocks(block, x)

    def norm(self, block: Any) -> nn.Module:
        """Return the norm before the attention."""
        norm: nn.Module = block.norm1
        return norm

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """Return the feed-forward network's output."""
        fed: Tensor = block.mlp(block.norm2(x))
        return fed

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
        return _table(block.attn.relative_position_bias_table, block.attn.window_size)

    def dropout(self, block: Any) -> float:
        """Return the probability of dropping an attention weight."""
        return float(block.attn.attn_drop.p) if block.training else 0.0

    def project(self, block: Any, out_GTC: Tensor) -> Tensor:
        """Return the attention's output projected."""
        projected_GTC: Tensor = block.attn.proj_drop(block.attn.proj(out_GTC))
        return projected_GTC


class HuggingFaceBlocks(_Blocks):
    """Interface to the blocks of Hugging Face's Swin."""

    def is_fast(self, block: Any, x: Tensor) -> bool:
        """Return False: there is no fast form of these blocks."""
        return False

    def norm(self, block: Any) -> nn.Module:
        """Return the norm before the attention."""
        norm: nn.Module = block.layernorm_before
        return norm

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """Return the feed-forward network's output."""
        fed: Tensor = block.dropout(block.mlp(block.layernorm_after(x)))
        return fed

    def heads(self, block: Any, normed_GTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each [G, M, T, D]."""
        attention = block.attention
        query, key, value = (
            projection(normed_GTC).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return query, key, value

    def scale(self, block: Any) -> float:
        """Return the factor of the logits."""
        return float(block.attention.scaling)

    def bias_table(self, block: Any) -> Tensor:
        """Return the bias [M, 2h - 1, 2w - 1] of (query - key) offsets."""
        bias = block.attention.relative_position_bias
        return _table(bias.relative_position_bias_table, bias.window_size)

    def dropout(self, block: Any) -> float:
        """Return the probability of dropping an attention weight."""
        return float(block.attention.attention_dropout) if block.training else 0.0

    def project(self, block: Any, out_GTC: Tensor) -> Tensor:
        """Return the attention's output projected."""
        projected_GTC: Tensor = block.dropout(block.attention.o_proj(out_GTC))
        return projected_GTC


def _table(rows_EM: Tensor, window: tuple[int, int]) -> Tensor:
    rows, columns = (2 * side - 1 for side in window)
    return rows_EM.view(rows, columns, -1).permute(2, 0, 1)


class TransformedStage(Transformed):
    """Mixin of a stage's class while its backbone is transformed."""

    token_plan: WindowPlan


class DetectronStage(TransformedStage):
    """Mixin of a stage of detectron2's Swin."""

    def forward(
        self: Any, x_BNC: Tensor, height: int, width: int
    ) -> tuple[Tensor, int, int, Tensor, int, int]:
        """Run the stage with fewer tokens in its later blocks."""
        x_BHWC = run_blocks(
            self.blocks,
            x_BNC.unflatten(1, (height, width)),
            self.token_plan,
            DetectronBlocks(),
            use_checkpoint=self.use_checkpoint,
        )
        x_BNC = x_BHWC.flatten(1, 2)
        if self.downsample is None:
            return x_BNC, height, width, x_BNC, height, width
        down = self.downsample(x_BNC, height, width)
        return x_BNC, height, width, down, (height + 1) // 2, (width + 1) // 2


class HuggingFaceStage(TransformedStage):
    """Mixin of a stage of Hugging Face's Swin; the stage itself checkpoints its activations."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        input_dimensions: tuple[int, int],
        always_partition: bool = False,
        output_hidden_states_before_downsampling: bool = False,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor, None]:
        """Run the stage with fewer tokens in its later blocks.

        Raises:
            ValueError: attention weights are requested.
        """
        if kwargs.get("output_attentions") or self.config.output_attentions:
            raise ValueError("a transformed Swin has no attention weights to return")
        if not always_partition:
            for block in self.blocks:  # windows are no larger than the map
                block.set_shift_and_window_size(input_dimensions)
        x_BHWC = run_blocks(
            self.blocks,
            hidden_states.unflatten(1, input_dimensions),
            self.token_plan,
            HuggingFaceBlocks(),
        )
        x_BNC = down_BNC = x_BHWC.flatten(1, 2)
        if self.downsample is not None:
            down_BNC = self.downsample(x_BNC, input_dimensions)
        reshaped_BCHW = self.get_reshaped_hidden_states(
            down_BNC, x_BNC, *input_dimensions, output_hidden_states_before_downsampling
        )
        return down_BNC, reshaped_BCHW, None


@dataclass(frozen=True)
class WindowedFamily:
    """One kind of windowed backbone.

    Attributes:
        package: prefix of the name of the class's module.
        owner: class name of the backbone.
        is_supported: returns False for a class of that name that works differently.
        stages: returns the stages of a backbone, each with ``blocks``.
        blocks: interface to the blocks.
        stage: mixin of a stage's class while the backbone is transformed.
    """

    package: str
    owner: str
    is_supported: Callable[[Any], bool]
    stages: Callable[[Any], nn.ModuleList]
    blocks: WindowedBlocks
    stage: type[TransformedStage]


WINDOWED_FAMILIES = (
    WindowedFamily(
        package="",  # the real detectron2's, or the stand-in
        owner=SwinTransformer.__name__,
        is_supported=lambda model: isinstance(model, SwinTransformer),
        stages=lambda model: model.layers,
        blocks=DetectronBlocks(),
        stage=DetectronStage,
    ),
    WindowedFamily(
        package="transformers.",
        owner="SwinModel",
        is_supported=lambda model: hasattr(model.encoder.layers[0].blocks[0].attention, "q_proj"),
        stages=lambda model: model.encoder.layers,
        blocks=HuggingFaceBlocks(),
        stage=HuggingFaceStage,
    ),
)


def windowed_family_of(module: nn.Module) -> WindowedFamily | None:
    """Return the family of a windowed backbone; None if it is in none.

    Subclasses may work differently and are in none.
    """
    kind = type(module)
    for family in WINDOWED_FAMILIES:
        if kind.__name__ == family.owner and kind.__module__.startswith(family.package):
            return family if family.is_supported(module) else None
    return None
