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
from dynamic_detr.budget import StageWindows
from dynamic_detr.traced import TracedChoice
from tokendetr.encoder import EncoderContext, TokenPlan
from tokendetr.tokens import (
    AffinityGroup,
    AffinityMatch,
    ChosenWindows,
    Keep,
    LevelWindows,
    Merge,
    TokenMap,
    WindowGroup,
    match_by_affinity,
    merged_order,
    partition,
    spread_tokens,
    token_norms,
    topk_valid,
    valid_from_counts,
    window_coherence,
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
        layout = self.context.layout
        merged = self.options.budget.stage_windows(ratios[:-1], layout.valid_sizes)
        counts = [
            sum(image) - saved
            for image, saved in zip(layout.valid_counts, merged.saved, strict=True)
        ]
        norm_BN = token_norms(memory_BNC)
        windows = self._best_windows(merged, memory_BNC, norm_BN) if merged.levels else None
        match, important = self._match_coarsest(ratios[-1], memory_BNC, norm_BN)
        if match is not None:
            for image, level_counts in enumerate(layout.valid_counts):
                counts[image] += important[image] - level_counts[-1]
        return self._assemble(counts, windows, match, important)

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
            chosen_BK = torch.ones_like(index_BK).bool() if chosen_BK is None else chosen_BK
            kept.append(torch.zeros_like(valid_BT).scatter(1, index_BK, chosen_BK))
        order_BN, _ = partition(torch.cat(kept, dim=1))
        length = max(counts)
        valid_BK = valid_from_counts(counts, length, layout.device)
        return Keep(index_BK=order_BN[:, :length], valid_BK=valid_BK)

    def _best_windows(
        self, merged: StageWindows, memory_BNC: Tensor, norm_BN: Tensor
    ) -> ChosenWindows:
        """Return the merged windows.

        Args:
            merged: how many there are.
            memory_BNC: the tokens.
            norm_BN: their lengths.
        """
        layout, options = self.context.layout, self.options
        windows = LevelWindows.of_levels(layout, merged.levels)
        if options.selection == "random":
            score_S = torch.rand(windows.first_S.shape, device=memory_BNC.device)
        else:
            score_S = window_coherence(memory_BNC, norm_BN.reciprocal(), windows)
        recorder = self.context.recorder
        if recorder.forward is not None:
            levels = layout.split(windows.per_token(score_S, layout.valid_BN))
            for level, _ in merged.levels:
                recorder.record_score(f"coherence_level{level + 1}", levels[level])
        return windows.choose(score_S, merged.counts)

    def _match_coarsest(
        self, ratio: float, memory_BNC: Tensor, norm_BN: Tensor
    ) -> tuple[AffinityMatch | None, list[int]]:
        """Return the match of the coarsest level's tokens and the number of important ones.

        The match is None at ratio 1; the number is per image.
        """
        layout, options = self.context.layout, self.options
        existing = [image[-1] for image in layout.valid_counts]
        if ratio == 1:
            return None, existing
        own = slice(layout.level_starts[-1], None)
        level_BUC = memory_BNC[:, own]
        important = [options.budget.important_tokens(ratio, count) for count in existing]
        random = options.selection == "random"
        with without_autocast(memory_BNC.device):
            match = match_by_affinity(
                level_BUC,
                norm_BN=norm_BN[:, own],
                important_counts=important,
                valid_BN=layout.valid_BN[:, own] if layout.may_have_padding else None,
                valid_counts=existing,
                num_neighbors=options.num_neighbors,
                min_cosine=options.min_cosine,
                score_BN=torch.rand_like(level_BUC[..., 0], dtype=torch.float32)
                if random
                else None,
                order_BN=spread_tokens(layout, layout.num_levels - 1),
            )
        self.context.recorder.record_score(f"rarity_level{layout.num_levels}", match.score_BN)
        return match, important

    def _assemble(
        self,
        counts: list[int],
        windows: ChosenWindows | None,
        match: AffinityMatch | None,
        important: list[int],
    ) -> Merge:
        """Return the map of windows and of tokens that absorb others.

        Args:
            counts: tokens of each image after merging.
            windows: those that merge; None: none.
            match: of the coarsest level's tokens; None if all of them stay.
            important: number of these that stay, of each image.
        """
        layout, options = self.context.layout, self.options
        length, absorbs = max(counts), match is not None and options.affinity_matching
        order = merged_order(
            layout.valid_BN,
            length,
            windows=windows,
            important_BU=None if match is None else match.important_BN,
            absorber_BA=match.index_BK if match is not None and absorbs else None,
            absorber_counts=important if absorbs else (),
        )
        groups: list[WindowGroup | AffinityGroup] = []
        if match is not None and absorbs:
            groups.append(
                AffinityGroup(
                    slot_R=order.absorber_slot_A,
                    token_R=order.absorber_A,
                    neighbor_index_BUT=match.neighbor_index_BNT,
                    absorbs_BUT=match.absorbs_BNT,
                    absorbed_BUV=match.absorbed_BNN,
                    start=layout.level_starts[-1],
                    rule=options.merge,
                )
            )
        members = [] if windows is None else windows.by_size()
        slots = order.window_slot_R.split([len(member_RP) for member_RP in members])
        groups += (
            WindowGroup(
                slot_R=slot_R,
                member_RP=member_RP,
                rule=options.merge,
                locate="anchor" if options.anchor == "bottom_right" else "mean",
            )
            for slot_R, member_RP in zip(slots, members, strict=True)
        )
        return Merge(
            index_BK=order.index_BK,
            valid_BK=valid_from_counts(counts, length, layout.device),
            groups=groups,
            num_all=layout.num_tokens,
            broadcast=options.window_update == "broadcast",
        )
