"""Select-and-pack attention: Swin's blocks and stages on selected tokens.

Shapes: B image, N tokens of a stage, C channel, G container, T slots of a container, M head, D head
width, P selected tokens of all images, R side of a table of relative positions.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spt_backbone.selection import SelectionRule, pack_selected
from spt_backbone.static_pack import StaticPack
from tokendetr.layers.cpu.linears import is_linear, linear_and_sum
from tokendetr.layers.cpu.swin import add_mlp, is_fast_attention
from tokendetr.ops import packed_attention
from tokendetr.tokens import LevelLayout, Pack

FeedForward = Literal["all", "selected"]
FEED_FORWARDS = ("all", "selected")
ORACLE_LOGIT = 20.0
"""Logit of a token that an oracle selects, minus it of any other; its sigmoid is 1 in float32."""


class Choice(NamedTuple):
    """What a block selected, and by which scores.

    Attributes:
        logit_BN: the scores that decided: the larger of its own and the finer scale's.
        own_BN: its own scores.
        pack: the selected tokens.
    """

    logit_BN: Tensor
    own_BN: Tensor
    pack: Pack | StaticPack


@dataclass(frozen=True)
class BlockOptions:
    """Options shared by all select-and-pack blocks of a backbone.

    Attributes:
        rule: the selection rule.
        container_length: slots of a container.
        position_bias: bias attention by Swin's table of relative positions.
        ffn_on: apply the feed-forward network to "all" tokens or to the "selected" ones.
    """

    rule: SelectionRule
    container_length: int
    position_bias: bool
    ffn_on: FeedForward


@dataclass(frozen=True)
class Selection:
    """Scores and selection of one block, or of the gate before the first one.

    Attributes:
        logit_BN: the scores that decide: the larger of its own and the finer scale's.
        own_BN: its own scores.
        pack: the selected tokens; None for the gate before the first block, which selects none.
        layout: geometry of the stage.
        stage: number of the stage, from 1.
    """

    logit_BN: Tensor
    own_BN: Tensor
    pack: Pack | StaticPack | None
    layout: LevelLayout
    stage: int


class SelectPackBlock(nn.Module):
    """A Swin block whose attention runs among selected tokens, packed into containers.

    Reuses the modules of a Swin block, so parameters keep their names; ``gate`` is new.

    Args:
        swin_block: detectron2's block.
        options: shared by all blocks.

    Source: SPT, arXiv 2410.23608, section 3.2.
    Differs: the output projection is computed for the selected tokens alone; the others get its
    bias, the projection of their zeros.
    """

    def __init__(self, swin_block: Any, options: BlockOptions) -> None:
        super().__init__()
        self.window_size: int = swin_block.window_size
        self.shift_size: int = swin_block.shift_size
        self.options = options
        self.norm1 = swin_block.norm1
        self.attn = swin_block.attn
        self.drop_path = swin_block.drop_path
        self.norm2 = swin_block.norm2
        self.mlp = swin_block.mlp
        self.attn.relative_position_bias_table.requires_grad_(options.position_bias)
        self.gate = make_gate(self.attn.dim)

    def forward(
        self,
        x_BNC: Tensor,
        layout: LevelLayout,
        finer_BN: Tensor | None,
        oracle_BN: Tensor | None = None,
    ) -> tuple[Tensor, Choice]:
        """Apply the block to the tokens of a stage.

        Args:
            x_BNC: the tokens.
            layout: their geometry, one level.
            finer_BN: scores of the finer scale, pooled to this one, or None.
            oracle_BN: bool, the tokens to select instead of the gate's; None: the gate selects.

        Returns:
            The tokens [B, N, C] and the choice.
        """
        normed_BNC = self.norm1(x_BNC)
        probability_BN, choice = self._choose(normed_BNC, layout, finer_BN, oracle_BN)
        logit_BN, pack = choice.logit_BN, choice.pack
        # Straight-through estimator: the mask is 1 for a selected token, with the gradient of its
        # probability.
        factor_BN = logit_BN.sigmoid()
        if torch.is_grad_enabled():
            factor_BN = factor_BN * (1 + (probability_BN - probability_BN.detach()))
        gated_GTC = pack.reduce(normed_BNC) * pack.select(factor_BN.to(normed_BNC.dtype))[..., None]
        attended_GTC = self._attend(gated_GTC, pack, layout)
        if isinstance(pack, Pack) and self._is_fast(x_BNC):
            return self._add_fast(x_BNC, attended_GTC, pack), choice
        projected_GTC, zeros_C = self._project(attended_GTC)
        rest_BNC = zeros_C.to(projected_GTC.dtype).expand_as(x_BNC)
        attended_BNC = self.attn.proj_drop(pack.restore(projected_GTC, rest_BNC))
        x_BNC = x_BNC + self.drop_path(attended_BNC)
        return self._feed_forward(x_BNC, pack), choice

    def _choose(
        self,
        normed_BNC: Tensor,
        layout: LevelLayout,
        finer_BN: Tensor | None,
        oracle_BN: Tensor | None,
    ) -> tuple[Tensor, Choice]:
        """Return the probability [B, N] of each token's selection, and the choice."""
        own_BN = gate_logits(self.gate, normed_BNC)
        logit_BN = own_BN if finer_BN is None else torch.maximum(own_BN, finer_BN)
        if oracle_BN is not None:
            logit_BN = torch.where(oracle_BN, ORACLE_LOGIT, -ORACLE_LOGIT).to(own_BN)
        rule = self.options.rule
        probability_BN = rule.probability(logit_BN, training=self.training)
        pack = pack_selected(
            rule.mask(probability_BN, layout, training=self.training)
            if oracle_BN is None
            else oracle_BN & layout.valid_BN,
            layout,
            window_size=self.window_size,
            shift=self.shift_size,
            length=self.options.container_length,
        )
        return probability_BN, Choice(logit_BN, own_BN, pack)

    def _is_fast(self, x_BNC: Tensor) -> bool:
        """Return True if :meth:`_add_fast` computes what the block's own steps compute."""
        return not self.training and is_fast_attention(self.attn, x_BNC, self.drop_path)

    def _add_fast(self, x_BNC: Tensor, attended_GTC: Tensor, pack: Pack) -> Tensor:
        """Return the block's output: sums inside products, and selected tokens as rows.

        Args:
            x_BNC: the block's input.
            attended_GTC: the attention's output before its projection.
            pack: the selected tokens.
        """
        x_NC = x_BNC.flatten(0, 1)
        attended_PC = attended_GTC.flatten(0, 1).index_select(0, pack.slot_P)
        selected_PC = x_NC.index_select(0, pack.index_P)
        if is_linear(self.attn.proj):
            selected_PC = linear_and_sum(self.attn.proj, attended_PC, selected_PC)
            zeros_C = self.attn.proj.bias
        else:
            projected_PC, zeros_C = self._project(attended_PC)
            selected_PC = selected_PC + projected_PC
        feeds_all = self.options.ffn_on == "all"
        if not feeds_all:
            selected_PC = add_mlp(self.norm2, self.mlp, selected_PC)
        rest_NC = x_NC.to(selected_PC.dtype) + zeros_C.to(selected_PC.dtype)
        x_NC = rest_NC.index_copy_(0, pack.index_P, selected_PC)
        if feeds_all:
            x_NC = add_mlp(self.norm2, self.mlp, x_NC)
        return x_NC.view(x_BNC.shape)

    def _project(self, attended_XC: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output projection of rows [..., C], and of the zeros of an unselected token.

        A layer that is no plain linear one any more is called once for both.
        """
        projection = self.attn.proj
        if is_linear(projection):
            return projection(attended_XC), projection.bias
        zeros_1C = attended_XC.new_zeros(1, attended_XC.shape[-1])
        projected_RC = projection(torch.cat([attended_XC.flatten(0, -2), zeros_1C]))
        return projected_RC[:-1].view_as(attended_XC), projected_RC[-1]

    def _attend(self, x_GTC: Tensor, pack: Pack | StaticPack, layout: LevelLayout) -> Tensor:
        """Attend inside containers, [G, T, C]."""
        heads = self.attn.num_heads
        query_GTMD, key_GTMD, value_GTMD = (
            self.attn.qkv(x_GTC).unflatten(-1, (3, heads, -1)).unbind(2)
        )
        position_GT2 = bias_table_MRR = None
        if self.options.position_bias:
            # A container holds tokens of many windows. Their offsets in the image can exceed the
            # table, whose farthest entries then apply (packed_attention clips).
            token_GT = pack.index_GT % layout.num_tokens
            width = layout.level_shapes[0][1]
            position_GT2 = torch.stack([token_GT // width, token_GT % width], dim=-1).int()
            side = 2 * self.window_size - 1
            table = self.attn.relative_position_bias_table
            bias_table_MRR = table.view(side, side, heads).permute(2, 0, 1)
        return packed_attention(
            query_GTMD,
            key_GTMD,
            value_GTMD,
            pack.segment_GT,
            scale=self.attn.scale,
            position_GT2=position_GT2,
            bias_table_MRR=bias_table_MRR,
        ).flatten(2)

    def _feed_forward(self, x_BNC: Tensor, pack: Pack | StaticPack) -> Tensor:
        if self.options.ffn_on == "all":
            return x_BNC + self.drop_path(self.mlp(self.norm2(x_BNC)))
        added_GTC = self.mlp(self.norm2(pack.reduce(x_BNC)))
        added_BNC = pack.restore(added_GTC, torch.zeros_like(x_BNC))
        return x_BNC + self.drop_path(added_BNC)


class SelectPackStage(nn.Module):
    """A Swin stage of select-and-pack blocks, made from detectron2's stage.

    Args:
        swin_stage: detectron2's ``BasicLayer``.
        options: shared by all blocks.
    """

    def __init__(self, swin_stage: Any, options: BlockOptions) -> None:
        super().__init__()
        self.use_checkpoint: bool = swin_stage.use_checkpoint
        self.blocks = nn.ModuleList(SelectPackBlock(b, options) for b in swin_stage.blocks)
        self.downsample = swin_stage.downsample

    def forward(
        self,
        x_BNC: Tensor,
        layout: LevelLayout,
        finer_BN: Tensor | None,
        oracle_BN: Tensor | None = None,
    ) -> tuple[Tensor, list[Choice]]:
        """Return the tokens after all blocks, and each block's choice."""
        choices = []
        for block in self.blocks:
            inputs = (x_BNC, layout, finer_BN, oracle_BN)
            if self.use_checkpoint and self.training:
                x_BNC, choice = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x_BNC, choice = block(*inputs)
            choices.append(choice)
        return x_BNC, choices


def gate_logits(gate: nn.Linear, x_BNC: Tensor) -> Tensor:
    """Return a gate's logits, [B, N], in float32 at least."""
    logit_BN = gate(x_BNC).squeeze(-1)
    return logit_BN.to(torch.promote_types(logit_BN.dtype, torch.float32))


def make_gate(channels: int) -> nn.Linear:
    """Return the linear layer that scores tokens, [..., C] -> [..., 1]."""
    gate = nn.Linear(channels, 1)
    nn.init.trunc_normal_(gate.weight, std=0.02)
    nn.init.zeros_(gate.bias)
    return gate
