"""One forward pass of Dynamic DETR: which windows and tokens merge in each stage.

Shapes: B image, N all tokens, K reduced tokens, C channel, L level, S windows of a level (of all
images), R merged windows, P cells of a window, U tokens of the coarsest level.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from detectron2.utils.logger import log_first_n
from torch import Tensor

from dynamic_detr.alignment import CenterAlignment
from dynamic_detr.budget import StageCounts
from dynamic_detr.traced import TracedChoice
from tokendetr.encoder import EncoderContext, TokenPlan
from tokendetr.tokens import (
    CoarsestLevel,
    Keep,
    LevelWindows,
    PlannedMerge,
    ScoredWindows,
    TokenMap,
    chosen_tokens,
    partition,
    plan_merge,
    spread_tokens,
    token_cosines,
    token_similarity,
    topk_valid,
    valid_from_counts,
)
from tokendetr.tokens.assignment import without_autocast

if TYPE_CHECKING:
    from dynamic_detr.sparsifier import DynamicSparsifier


class DynamicPlan(TokenPlan):
    """One forward pass: a new map at the start of each stage, and the alignment loss at the end.

    Args:
        context: the forward pass.
        sparsifier: the options.
    """

    def __init__(self, context: EncoderContext, sparsifier: DynamicSparsifier) -> None:
        super().__init__(context)
        self.options = sparsifier
        self._stage = -1
        self._map: TokenMap | None = None
        self._stage_input_BNC: Tensor | None = None
        self._alignment: CenterAlignment | None = None
        self._traced: TracedChoice | None = None
        if context.layout.traced_sizes_BL2 is not None:
            self._traced = TracedChoice(context.layout, sparsifier)
        if (
            sparsifier.alignment != "off"
            and sparsifier.training
            and torch.is_grad_enabled()
            and not sparsifier.budget.keeps_all
            and self._adds_losses()
        ):
            self._alignment = CenterAlignment(
                context.layout,
                per_merge=sparsifier.alignment == "per_merge",
                weight=sparsifier.alignment_weight,
            )

    def _adds_losses(self) -> bool:
        if self.context.detector is None:
            log_first_n(
                logging.WARNING,
                "The alignment loss of Dynamic DETR is left out: its encoder runs alone. Build the "
                "config with tokendetr.config.sparsify(), call tokendetr.encoder.observe(model), "
                "or set alignment='off'.",
                key="message",
            )
        return self.context.losses is not None

    def token_map(self, layer: int, memory_BNC: Tensor) -> TokenMap:
        """Return the map of the layer's stage, made from the tokens at the stage's start."""
        stage = self.options.budget.stage(layer)
        if self._map is None or stage != self._stage:
            self._map, self._stage = self._make_map(stage, memory_BNC), stage
            self._stage_input_BNC = memory_BNC
        return self._map

    def before_attention(self, layer: int, tokens_BKC: Tensor, token_map: TokenMap) -> Tensor:
        """Record the merge at a stage's start for the alignment; return the tokens unchanged."""
        before_BNC, self._stage_input_BNC = self._stage_input_BNC, None
        if before_BNC is not None and self._alignment is not None:
            self._alignment.add_merge(before_BNC, tokens_BKC, token_map)
        return tokens_BKC

    def finalize(self, memory_BNC: Tensor) -> Tensor:
        """Add the alignment loss ``loss_align``."""
        if self._alignment is not None:
            teacher, run_dense = self.options.teacher, self.context.run_dense
            if teacher is not None:
                run_dense = partial(teacher, self.context)
            self._alignment.add_loss(self.context.require_losses(), memory_BNC, run_dense)
        return memory_BNC

    @torch.no_grad()
    def _make_map(self, stage: int, memory_BNC: Tensor) -> TokenMap:
        """Choose the windows and tokens that merge in a stage."""
        ratios = self.options.budget.level_ratios(stage)
        if all(ratio == 1 for ratio in ratios):
            return self._identity
        if self._traced is not None:
            return self._traced.make_map(ratios, memory_BNC)
        if self.options.selection == "random_tokens":
            return self._random_tokens(ratios)
        layout, options = self.context.layout, self.options
        counts = options.budget.stage_counts(ratios, layout.valid_sizes)
        windows = LevelWindows.of_levels(layout, counts.levels) if counts.levels else None
        scores_S, unit_BUC = token_similarity(
            memory_BNC,
            None if options.selection == "random" else windows,
            layout.num_tokens if ratios[-1] == 1 else layout.level_starts[-1],
        )
        plan = plan_merge(
            layout.valid_BN,
            counts.longest,
            windows=None if windows is None else self._scored(windows, counts, scores_S),
            level=None if ratios[-1] == 1 else self._coarsest(counts, unit_BUC),
            absorbs=options.affinity_matching,
        )
        if plan.match is not None:
            rarity = f"rarity_level{layout.num_levels}"
            self.context.recorder.record_score(rarity, plan.match.score_BN)
        return PlannedMerge(
            plan,
            absorbs=options.affinity_matching,
            valid_BK=valid_from_counts(counts.kept, counts.longest, layout.device),
            num_all=layout.num_tokens,
            level_start=layout.level_starts[-1],
            rule=options.merge,
            locate="anchor" if options.anchor == "bottom_right" else "mean",
            broadcast=options.window_update == "broadcast",
        )

    def _random_tokens(self, ratios: Sequence[float]) -> TokenMap:
        """Keep random tokens of each level, and merge nothing."""
        layout, budget = self.context.layout, self.options.budget
        kept = []
        counts = [0] * layout.batch_size
        for level, ratio in enumerate(ratios):
            valid_BT = layout.split(layout.valid_BN)[level]
            existing = [image[level] for image in layout.valid_counts]
            wanted = [budget.important_tokens(ratio, count) for count in existing]
            counts = [count + w for count, w in zip(counts, wanted, strict=True)]
            score_BT = torch.rand(valid_BT.shape, device=layout.device)
            index_BK, chosen_BK = topk_valid(
                score_BT, wanted, valid_BN=valid_BT, valid_counts=existing
            )
            kept.append(chosen_tokens(index_BK, chosen_BK, valid_BT.shape[1]))
        order_BN, _ = partition(torch.cat(kept, dim=1))
        length = max(counts)
        valid_BK = valid_from_counts(counts, length, layout.device)
        return Keep(index_BK=order_BN[:, :length], valid_BK=valid_BK)

    def _scored(
        self, windows: LevelWindows, counts: StageCounts, score_S: Tensor | None
    ) -> ScoredWindows:
        """Return the windows of the levels in which some merge, with scores: None means random."""
        layout, recorder = self.context.layout, self.context.recorder
        if score_S is None:
            score_S = torch.rand(windows.first_S.shape, device=layout.device)
        if recorder.forward is not None:
            levels = layout.split(windows.per_token(score_S, layout.valid_BN))
            for level, _ in counts.levels:
                recorder.record_score(f"coherence_level{level + 1}", levels[level])
        return ScoredWindows(windows, score_S, counts.windows)

    def _coarsest(self, counts: StageCounts, unit_BUC: Tensor) -> CoarsestLevel:
        """Return what is known of the coarsest level's tokens, given their unit vectors."""
        layout, options = self.context.layout, self.options
        random = options.selection == "random"
        with without_autocast(unit_BUC.device):
            cosine_BUU = token_cosines(unit_BUC)
        own, valid_BN = slice(layout.level_starts[-1], None), layout.valid_if_padded_BN
        return CoarsestLevel(
            cosine_BUU=cosine_BUU,
            order_BU=spread_tokens(layout, layout.num_levels - 1),
            valid_BU=None if valid_BN is None else valid_BN[:, own],
            valid_counts=counts.coarsest,
            important_counts=counts.important,
            num_neighbors=options.num_neighbors,
            min_cosine=options.min_cosine,
            score_BU=torch.rand_like(cosine_BUU[..., 0], dtype=torch.float32) if random else None,
        )
