"""One forward pass of Sparse DETR: scores and the kept set at the start, losses in training.

Shapes: B image, N all tokens, K kept tokens, C channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokendetr.detector.criterion import world_average_boxes
from tokendetr.detector.token_losses import (
    add_detection_losses,
    attention_ranking_loss,
    attention_value_loss,
    decoder_attention_loss,
)
from tokendetr.encoder import EncoderContext, TokenPlan
from tokendetr.encoder.decoder_attention import DecoderAttention
from tokendetr.encoder.detector_view import project_tokens
from tokendetr.tokens import Counts, Keep, TokenMap, TracedCounts, map_counts, select_tokens

if TYPE_CHECKING:
    from sparse_detr.sparsifier import SparseSparsifier


def kept_tokens(keep_ratio: float, valid_tokens: int) -> int:
    """Return the number of an image's real tokens that are kept at a ratio in [0, 1].

    Source: the published code, which keeps one more than the ratio's share, rounded down. Differs:
    never more than there are, and none at ratio 0.
    """
    if keep_ratio == 0:
        return 0
    return min(int(keep_ratio * valid_tokens) + 1, valid_tokens)


class SparsePlan(TokenPlan):
    """One forward pass: scores and the kept set at the start, losses in training.

    Args:
        context: the forward pass.
        sparsifier: the options and the modules.
    """

    def __init__(self, context: EncoderContext, sparsifier: SparseSparsifier) -> None:
        super().__init__(context)
        self.options = sparsifier
        layout = context.layout
        self._valid_counts = layout.token_counts
        self._counts = map_counts(self._valid_counts, sparsifier.kept_tokens)
        self._valid_BN = layout.valid_if_padded_BN
        self._head_inputs: list[tuple[int, Tensor, TokenMap]] = []
        self._map: TokenMap = self._identity
        training = sparsifier.training
        if not training and sparsifier.keep_ratio == 1 and not sparsifier.object_attentions:
            return
        if sparsifier.keep_ratio == 0:
            nothing_BK = torch.empty(layout.batch_size, 0, dtype=torch.long, device=layout.device)
            self._map = Keep(index_BK=nothing_BK)
            return
        score_BN = self._score(training)
        if sparsifier.selection != "random":
            self.score_BN = score_BN
        if sparsifier.keep_ratio < 1:
            context.recorder.record_score("score", score_BN)
            if not training:
                self._counts = self._evaluated_counts(score_BN)
            index_BK, valid_BK = select_tokens(score_BN, self._counts, layout)
            self._map = Keep(index_BK=index_BK, valid_BK=valid_BK)
        if training and sparsifier.selection == "dam":
            self._train_on_decoder(score_BN)

    def _score(self, training: bool) -> Tensor:
        """Return the scores that rank tokens, [B, N]."""
        options, memory_BNC = self.options, self.context.memory_BNC
        if options.selection == "random":
            return torch.rand(memory_BNC.shape[:2], device=memory_BNC.device)
        token_BNC = self._project()
        if options.selection == "dam":
            return options.score_head(token_BNC, self._valid_BN)
        if training:
            self._head_inputs.append((-1, token_BNC, self._identity))
        return options.class_embed[-1](token_BNC).amax(dim=-1)

    def _evaluated_counts(self, score_BN: Tensor) -> Counts:
        """Return the number of tokens that each image keeps in evaluation."""
        options = self.options
        if options.mass_budget is None or isinstance(self._valid_counts, TracedCounts):
            return self._counts
        return options.mass_budget.counts(
            score_BN,
            options.keep_ratio,
            valid_BN=self._valid_BN,
            valid_counts=self._valid_counts,
        )

    def _project(self) -> Tensor:
        """Return tokens plus positions, through the two-stage projection."""
        layout, pos_BNC = self.context.layout, self.context.query_pos_BNC
        token_BNC = self.context.memory_BNC
        token_BNC = token_BNC if pos_BNC is None else token_BNC + pos_BNC
        if not self.options.has_projection:
            return self.context.require_detector().project(token_BNC, layout)
        return project_tokens(
            token_BNC, layout, self.options.enc_output, self.options.enc_output_norm
        )

    def token_map(self, layer: int, memory_BNC: Tensor) -> TokenMap:
        """Return the one map of all layers."""
        return self._map

    def before_attention(self, layer: int, tokens_BKC: Tensor, token_map: TokenMap) -> Tensor:
        """Apply the attention among object tokens, if there is any."""
        attentions, score_BN = self.options.object_attentions, self.score_BN
        if score_BN is None or not attentions or not token_map.num_tokens:
            return tokens_BKC
        return attentions(
            layer,
            tokens_BKC,
            score_BN,
            token_map,
            self.context,
            class_head=self.context.require_detector().class_head,
            counts=self._counts,
            valid_BK=token_map.valid_BK,
        )

    def after_layer(self, layer: int, tokens_BKC: Tensor, token_map: TokenMap) -> None:
        """Store a layer's tokens for its heads, in training."""
        options = self.options
        has_heads = options.auxiliary_heads and layer < options.num_layers - 1
        if options.training and has_heads and token_map.num_tokens:
            self._head_inputs.append((layer, tokens_BKC, token_map))

    def finalize(self, memory_BNC: Tensor) -> Tensor:
        """Add the losses of the heads, ``loss_..._enc_<layer>`` and ``loss_..._tokens``."""
        if self._head_inputs:
            losses = self.context.require_losses()
            targets = [{"labels": target.labels} for target in losses.targets]
            num_boxes = world_average_boxes(targets, memory_BNC.device)
            anchor_BN4, _ = self.context.layout.proposals()
            for layer, tokens_BKC, token_map in self._head_inputs:
                offset_BK4 = self.options.bbox_embed[layer](tokens_BKC)
                add_detection_losses(
                    losses,
                    self.options.class_embed[layer](tokens_BKC),
                    (offset_BK4 + token_map.select(anchor_BN4)).sigmoid(),
                    valid_BK=None if self.options.counts_padding else self._real(token_map),
                    num_boxes=num_boxes,
                    suffix="_tokens" if layer < 0 else f"_enc_{layer}",
                )
        return memory_BNC

    def _real(self, token_map: TokenMap) -> Tensor | None:
        return self._valid_BN if token_map is self._identity else token_map.valid_BK

    def _train_on_decoder(self, score_BN: Tensor) -> None:
        """Record the decoder's attention, and add ``loss_dam`` when the decoder has run."""
        losses, options, layout = self.context.require_losses(), self.options, self.context.layout
        detector = self.context.require_detector()
        attention = DecoderAttention(detector, layout, half_cell=options.half_cell)
        losses.enter(attention)
        if options.counts_padding and self._valid_BN is not None:
            # The published code gives padding the lowest score of the batch.
            score_BN = score_BN.where(self._valid_BN, score_BN.min())

        def add_loss() -> None:
            loss = self._score_loss(score_BN, attention.mass_BN)
            losses.add("loss_dam", options.dam_weight * loss)

        losses.when_decoded(add_loss)

    def _score_loss(self, score_BN: Tensor, mass_BN: Tensor) -> Tensor:
        """Return the loss of scores that predict the decoder's attention to each token."""
        if self.options.objective == "smooth_l1":
            return attention_value_loss(score_BN, mass_BN, self._valid_BN)
        if self.options.objective == "ranking":
            return attention_ranking_loss(score_BN, mass_BN, self._valid_BN)
        return decoder_attention_loss(
            score_BN,
            mass_BN,
            self._counts,
            valid_BN=self._valid_BN,
            valid_counts=self._valid_counts,
            counts_padding=self.options.counts_padding,
        )
