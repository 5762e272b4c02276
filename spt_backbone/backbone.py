"""SPT: a Swin Transformer whose last stages attend among selected tokens only."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from detectron2.modeling.backbone import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from spt_backbone.block import (
    FEED_FORWARDS,
    BlockOptions,
    FeedForward,
    Selection,
    SelectPackStage,
    gate_logits,
    make_gate,
)
from spt_backbone.labels import LABEL_KINDS, LabelKind, object_cells
from spt_backbone.losses import GATE_LOSSES, GateLoss, selection_loss, write_metrics
from spt_backbone.reports import record_selections, selections_by_image
from spt_backbone.selection import SelectionRule, pool_scores
from tokendetr.encoder.forward_context import current_pass
from tokendetr.encoder.image_extents import ImageExtents
from tokendetr.errors import check_choice
from tokendetr.tokens import LevelLayout

logger = logging.getLogger(__name__)

OUTPUT_NAME = "token_selection"
"""Key, in an image's output dict in evaluation, of the masks that each stage's blocks selected."""


class SPT(SwinTransformer):
    """Backbone with select-and-pack attention; outputs ``p0`` ... ``p3`` at strides 4 ... 32.

    In stages from ``start_stage`` on, attention runs among the tokens that a linear gate selects;
    the others skip it. Inside an observed model (:func:`tokendetr.config.observed`) the backbone
    adds ``loss_selection`` in training and writes select ratios to the event storage; in evaluation
    it adds ``token_selection`` to each image's output. Parameters have the names of
    :class:`SwinTransformer`, plus those of the gates.

    Args:
        depths: blocks of each stage; the paper's SPT has four more in the third stage than Swin.
        num_heads: attention heads of each stage.
        embed_dim: channels of the first stage; every stage doubles them.
        window_size: side of Swin's windows in tokens.
        container_length: slots of a container; None for ``window_size ** 2``.
        start_stage: first stage, from 1, that selects.
        threshold: select tokens with a larger probability.
        evaluation_threshold: threshold in evaluation; None: ``threshold``.
        temperature: of the Gumbel-Softmax.
        keep_ratio: select this share of every image's tokens; None: select by threshold.
        selection_loss_weight: weight of ``loss_selection``; 0: no loss.
        selection_labels: labels of the gates' loss: tokens that overlap "boxes" or "masks".
        position_bias: bias attention by Swin's table, at the tokens' offsets in the image.
        ffn_on: feed-forward networks work on "all" tokens or the "selected" ones.
        first_gate_norm: normalize the input of the gate before the first selecting stage, whose
            scores bound those of all later stages from below; the other gates have normalized
            inputs anyway.
        gate_loss: "combined": loss of the score that decides, the larger of a token's own and the
            finer scale's, so that only this one is trained; "own": loss of each gate's own scores.
        positive_weight: weight of object tokens in the loss.
        multi_scale: let a token's score be the larger of its own and the finer scale's; False (an
            ablation of the paper): its own.
        selection: "gates"; or "oracle" (the paper's Figure 4): the object tokens of the
            annotations, in evaluation too, for which records need ``instances``.
        extra_blocks: weights of blocks that a checkpoint lacks: "fresh" keeps their initial
            weights, "copied" repeats the last blocks of the stage.
        **swin: further arguments of :class:`SwinTransformer`.

    Raises:
        ValueError: an argument is out of range.

    Source: SPT, arXiv 2410.23608.
    """

    # Over 60 lines: an argument for every key of the configs.
    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (2, 2, 10, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        embed_dim: int = 96,
        window_size: int = 7,
        container_length: int | None = None,
        start_stage: int = 3,
        threshold: float = 0.01,
        evaluation_threshold: float | None = None,
        temperature: float = 1.0,
        keep_ratio: float | None = None,
        selection_loss_weight: float = 0.01,
        selection_labels: LabelKind = "boxes",
        position_bias: bool = True,
        ffn_on: FeedForward = "all",
        first_gate_norm: bool = False,
        gate_loss: GateLoss = "combined",
        positive_weight: float = 1.0,
        multi_scale: bool = True,
        selection: Literal["gates", "oracle"] = "gates",
        extra_blocks: Literal["fresh", "copied"] = "fresh",
        **swin: Any,
    ) -> None:
        super().__init__(
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            **swin,
        )
        check_choice("ffn_on", ffn_on, FEED_FORWARDS)
        check_choice("selection_labels", selection_labels, LABEL_KINDS)
        check_choice("extra_blocks", extra_blocks, ("fresh", "copied"))
        check_choice("gate_loss", gate_loss, GATE_LOSSES)
        check_choice("selection", selection, ("gates", "oracle"))
        if not positive_weight > 0:
            raise ValueError(f"positive_weight must be positive, got {positive_weight}")
        if not 1 <= start_stage <= len(depths):
            raise ValueError(f"start_stage must be 1 to {len(depths)}, got {start_stage}")
        if swin.get("attn_drop_rate", 0.0) != 0:
            raise ValueError("SPT has no dropout of attention weights: attn_drop_rate must be 0")
        self.start_stage = start_stage
        self.patch_size = int(self.patch_embed.patch_size[0])
        self.selection_loss_weight = selection_loss_weight
        self.selection_labels: LabelKind = selection_labels
        self.extra_blocks = extra_blocks
        self.first_gate_norm = first_gate_norm
        self.gate_loss: GateLoss = gate_loss
        self.positive_weight = positive_weight
        self.multi_scale = multi_scale
        self.selection = selection
        options = BlockOptions(
            rule=SelectionRule(threshold, evaluation_threshold, temperature, keep_ratio),
            container_length=container_length or window_size**2,
            position_bias=position_bias,
            ffn_on=ffn_on,
        )
        for index in range(start_stage - 1, len(depths)):
            self.layers[index] = SelectPackStage(self.layers[index], options)
        has_first = start_stage > 1 and multi_scale
        self.gate = make_gate(self.num_features[start_stage - 2]) if has_first else None
        if selection == "oracle":
            for gate in self._gates():
                gate.requires_grad_(False)
        self.register_load_state_dict_pre_hook(_fill_extra_blocks)

    @property
    def rule(self) -> SelectionRule:
        """The selection rule that all blocks share."""
        rule: SelectionRule = self._select_pack_blocks()[0].options.rule
        return rule

    def set_evaluation_threshold(self, threshold: float) -> None:
        """Set the evaluation threshold of all blocks.

        Raises:
            ValueError: the threshold is outside of [0, 1].
        """
        for block in self._select_pack_blocks():
            rule = replace(block.options.rule, evaluation_threshold=threshold)
            block.options = replace(block.options, rule=rule)

    def _select_pack_blocks(self) -> list[Any]:
        stages = [stage for stage in self.layers if isinstance(stage, SelectPackStage)]
        return [block for stage in stages for block in stage.blocks]

    def _gates(self) -> list[nn.Module]:
        gates = [block.gate for block in self._select_pack_blocks()]
        return gates if self.gate is None else [self.gate, *gates]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images [B, in_chans, H, W] to ``p<stage>`` maps [B, C, h, w]."""
        extents = current_pass().extents_of(x)
        x_BNC, height, width = self._embed(x)
        finer_BN: Tensor | None = None
        outputs, selections = {}, []
        oracle = self._oracle(extents, (height, width)) if self.selection == "oracle" else {}
        for index, stage in enumerate(self.layers):
            if isinstance(stage, SelectPackStage):
                layout = self._layout(extents, index, (height, width), x_BNC.device)
                out_BNC, choices = stage(x_BNC, layout, finer_BN, oracle.get(index + 1))
                selections += [
                    Selection(each.logit_BN, each.own_BN, each.pack, layout, index + 1)
                    for each in choices
                ]
                finer_BN = pool_scores(choices[-1].logit_BN, layout) if self.multi_scale else None
                out_height, out_width = height, width
                if stage.downsample is not None:
                    x_BNC = stage.downsample(out_BNC, height, width)
                height, width = (height + 1) // 2, (width + 1) // 2
            else:
                out_BNC, out_height, out_width, x_BNC, height, width = stage(x_BNC, height, width)
                if index + 2 == self.start_stage and self.gate is not None:
                    layout = self._layout(extents, index, (out_height, out_width), x_BNC.device)
                    logit_BN = self._first_logits(self.gate, out_BNC)
                    selections.append(Selection(logit_BN, logit_BN, None, layout, index + 1))
                    finer_BN = pool_scores(logit_BN, layout)
            if index in self.out_indices:
                out_BNC = getattr(self, f"norm{index}")(out_BNC)
                grid_BHWC = out_BNC.unflatten(1, (out_height, out_width))
                outputs[f"p{index}"] = grid_BHWC.permute(0, 3, 1, 2).contiguous()
        record_selections(selections)
        self._report(selections, extents)
        return outputs

    def _first_logits(self, gate: nn.Linear, x_BNC: Tensor) -> Tensor:
        """Score the tokens before the first selecting stage, [B, N]."""
        if self.first_gate_norm:
            x_BNC = F.layer_norm(x_BNC, x_BNC.shape[-1:])
        return gate_logits(gate, x_BNC)

    def _embed(self, images: Tensor) -> tuple[Tensor, int, int]:
        """Return the tokens of the first stage and the height and width of their grid."""
        x_BCHW = self.patch_embed(images)
        height, width = x_BCHW.shape[-2:]
        if self.ape:
            x_BCHW = x_BCHW + F.interpolate(
                self.absolute_pos_embed, size=(height, width), mode="bicubic"
            )
        return self.pos_drop(x_BCHW.flatten(2).transpose(1, 2)), height, width

    def _stride(self, index: int) -> int:
        return self.patch_size * 2**index

    def _layout(
        self, extents: ImageExtents, index: int, grid: tuple[int, int], device: torch.device
    ) -> LevelLayout:
        """Return the layout of a stage; tokens that contain a part of their image are real."""
        stride = self._stride(index)
        sizes = [tuple(-(-pixels // stride) for pixels in size) for size in extents.sizes]
        return LevelLayout.from_valid_sizes([grid], [[size] for size in sizes], device=device)

    def _report(self, selections: list[Selection], extents: ImageExtents) -> None:
        """Add loss and metrics in training, or the selection to the outputs in evaluation."""
        losses = current_pass().losses
        if losses is None or (torch.compiler.is_compiling() and not self.training):
            return  # an exported program has no such output
        if not self.training:
            for row, choice in zip(
                extents.rows, selections_by_image(selections, self._stride(0)), strict=True
            ):
                losses.add_output(row, OUTPUT_NAME, choice)
            return
        has_loss = self.selection_loss_weight > 0 and self.selection == "gates"
        labels = None
        if has_loss or losses.is_annotated:
            first, last = selections[0], selections[-1]
            grid = first.layout.level_shapes[0]
            labels = self._labels(extents, first.stage, last.stage, grid)
        if labels is not None and has_loss:
            loss = selection_loss(
                selections, labels, of=self.gate_loss, positive_weight=self.positive_weight
            )
            losses.add("loss_selection", self.selection_loss_weight * loss)
        write_metrics(selections, labels)

    def _labels(
        self, extents: ImageExtents, first: int, last: int, grid: tuple[int, int]
    ) -> dict[int, Tensor]:
        """Return by stage, bool [B, N], the tokens that contain a part of an object.

        Args:
            extents: the images.
            first: first stage, from 1.
            last: last stage.
            grid: rows and columns of the first stage's tokens.
        """
        losses = current_pass().losses
        assert losses is not None
        cells = object_cells(
            [losses.targets[row] for row in extents.rows],
            grid,
            [self._stride(stage - 1) for stage in range(first, last + 1)],
            kind=self.selection_labels,
        )
        return dict(enumerate(cells, start=first))

    def _oracle(self, extents: ImageExtents, grid: tuple[int, int]) -> dict[int, Tensor]:
        """Return by stage the object tokens of the annotations.

        Args:
            extents: the images.
            grid: rows and columns of the first stage's tokens.

        Raises:
            ValueError: the images have no annotations.
        """
        losses = current_pass().losses
        if losses is None or not losses.is_annotated:
            raise ValueError(
                "selection='oracle' needs an observed model (use_spt) and annotated images: let "
                "the test set's mapper keep annotations too (dataloader.test.mapper.is_train=True)"
            )
        return self._labels(extents, 1, len(self.layers), grid)


def _fill_extra_blocks(
    model: SPT, state: dict[str, Any], prefix: str, *_: Any, **__: Mapping[str, Any]
) -> None:
    """Copy the weights of a checkpoint's last blocks to blocks that it lacks, before loading."""
    if model.extra_blocks != "copied":
        return
    stages: Any = model.layers
    for index, stage in enumerate(stages):
        start = f"{prefix}layers.{index}.blocks."
        known = {int(key[len(start) :].split(".")[0]) for key in state if key.startswith(start)}
        have = max(known, default=-1) + 1
        wanted = len(stage.blocks)
        if not 0 < have < wanted:
            continue
        for block in range(have, wanted):
            # Even blocks have plain windows, odd ones shifted windows: copy from the same kind.
            source = have - 1 - (have - 1 - block) % 2
            for key in [k for k in state if k.startswith(f"{start}{source}.")]:
                state[f"{start}{block}.{key[len(f'{start}{source}.') :]}"] = state[key]
            logger.info("%s%d: copied from block %d of the checkpoint", start, block, source)
