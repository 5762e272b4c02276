"""Dynamic DETR as a token sparsifier: windows merge in fine levels, single tokens in the coarsest.

The options are here; :mod:`dynamic_detr.plan` chooses and merges.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from dynamic_detr.alignment import ALIGNMENTS, Alignment
from dynamic_detr.budget import TokenBudget
from dynamic_detr.plan import DynamicPlan
from dynamic_detr.teacher import FrozenTeacher, with_teacher
from tokendetr.encoder import EncoderContext, TokenEncoder, TokenSparsifier, ValuePolicy
from tokendetr.errors import check_choice, check_share
from tokendetr.tokens.maps.merge import MERGE_RULES, MergeRule


def _first_stages(stage_lengths: Sequence[int], stages: int | None) -> tuple[int, ...]:
    """Return the lengths of the first stages; the last of them also gets the remaining layers."""
    if stages is None:
        return tuple(stage_lengths)
    if not 1 <= stages <= len(stage_lengths):
        raise ValueError(f"stages must lie in [1, {len(stage_lengths)}], got {stages}")
    return (*stage_lengths[: stages - 1], sum(stage_lengths[stages - 1 :]))


def _former_window_update(cells: str) -> Literal["anchor_only", "broadcast"]:
    """Read the former spelling of ``window_update``, with a warning."""
    check_choice("cells", cells, ("stale", "broadcast"))
    window_update: Literal["anchor_only", "broadcast"] = "broadcast"
    if cells == "stale":
        window_update = "anchor_only"
    warnings.warn(
        f"cells={cells!r} is now window_update={window_update!r}; change it in your config",
        FutureWarning,
        stacklevel=3,
    )
    return window_update


class DynamicSparsifier(TokenSparsifier):
    """Keeps few queries per level, and changes from stage to stage which level keeps most.

    At the start of each stage the most coherent windows of the finer levels become one query each.
    In the coarsest level, rare tokens are kept as queries and absorb their most similar common
    tokens. Values remain full grids, so the modules after the encoder are unchanged. There are no
    learned parameters: dense checkpoints load unchanged.

    Args:
        keep_ratios: share of tokens kept as queries, a stage's most important level first.
        level_orders: per stage the levels (1 = finest), most important first. The first default is
            the paper's; the others follow the trend of its figure, from fine to coarse.
        stage_lengths: encoder layers of each stage.
        stages: number of stages that choose queries, from 1 on; the layers of later stages keep
            the last choice and its ratios. None: all.
        window_sizes: cells per side of the windows of each level but the coarsest; a little more if
            the level's size is not a multiple. A default window covers one token of the coarsest
            level; (4, 2, 1) is the reading closest to the paper's figure.
        ratio_order: see :class:`dynamic_detr.budget.TokenBudget`.
        merge: how the tokens of a group become one: "mean", "sum", "max", or "retain": the anchor's
            features alone.
        window_update: which cells of a merged window receive its result: "anchor_only" writes the
            anchor's and leaves the others as they were, "broadcast" writes all.
        anchor: position and reference point of a merged window: those of its "bottom_right" cell,
            or its "center".
        affinity_matching: let important tokens of the coarsest level absorb the others; otherwise
            the others are skipped.
        num_neighbors: number of most similar tokens among which absorbing ones are searched.
        min_cosine: lower bound of cosines in rarity, above 0.
        selection: "coherence" and rarity as in the paper; "random": random windows merge and random
            tokens of the coarsest level are kept; "random_tokens": random tokens of every level are
            kept and nothing is merged (the paper's ablation).
        alignment: regularization of the memory's mean in training: "two_pass" compares with a dense
            pass of the same encoder, "teacher" with a dense pass of the frozen ``teacher``,
            "per_merge" compares before and after each merge; or "off".
        teacher: with alignment "teacher", a dense encoder of the same form. It gets the encoder's
            own weights when a checkpoint without a teacher is loaded, and is never trained.
        alignment_weight: weight of that loss.
        value_policy: see :class:`tokendetr.encoder.TokenSparsifier`.
        cells: former name of ``window_update``, whose "anchor_only" was "stale"; still read, with a
            warning.

    Raises:
        ValueError: a value is out of range; the message names the argument.

    Source: Dynamic DETR (ICML 2025, PMLR 267), section 3. Differs: if a level's size is not a
    multiple of its window, its rows and columns are divided into nearly equal parts of at least the
    window's length, so that neither the border nor padding cuts a window; among equally coherent
    windows and equally rare tokens, the chosen ones are spread over the image; cosines are clamped
    before they are inverted; the merges of the coarsest level are simultaneous.
    """

    def __init__(
        self,
        *,
        keep_ratios: Sequence[float] = (0.5, 0.4, 0.3, 0.2),
        level_orders: Sequence[Sequence[int]] = ((1, 2, 3, 4), (3, 2, 4, 1), (4, 3, 2, 1)),
        stage_lengths: Sequence[int] = (2, 3, 1),
        stages: int | None = None,
        window_sizes: Sequence[int] = (8, 4, 2),
        ratio_order: Literal["scatter", "gather"] = "scatter",
        merge: MergeRule = "mean",
        window_update: Literal["anchor_only", "broadcast"] = "anchor_only",
        anchor: Literal["bottom_right", "center"] = "bottom_right",
        affinity_matching: bool = True,
        num_neighbors: int = 3,
        min_cosine: float = 0.01,
        selection: Literal["coherence", "random", "random_tokens"] = "coherence",
        alignment: Alignment = "two_pass",
        alignment_weight: float = 0.1,
        teacher: TokenEncoder | None = None,
        value_policy: ValuePolicy = "updated",
        cells: Literal["stale", "broadcast"] | None = None,
    ) -> None:
        super().__init__(value_policy=value_policy)
        self.budget = TokenBudget(
            keep_ratios=tuple(float(ratio) for ratio in keep_ratios),
            level_orders=tuple(tuple(order) for order in level_orders)[:stages],
            stage_lengths=_first_stages(stage_lengths, stages),
            window_sizes=tuple(window_sizes),
            ratio_order=ratio_order,
        )
        first = self.budget.keep_ratios[0]
        self._proportions = tuple(each / first for each in self.budget.keep_ratios)
        check_choice("merge", merge, MERGE_RULES)
        check_choice("window_update", window_update, ("anchor_only", "broadcast"))
        check_choice("anchor", anchor, ("bottom_right", "center"))
        check_choice("selection", selection, ("coherence", "random", "random_tokens"))
        check_choice("alignment", alignment, ALIGNMENTS)
        if num_neighbors < 1:
            raise ValueError(f"num_neighbors must be at least 1, got {num_neighbors}")
        if not 0 < min_cosine <= 1:
            raise ValueError(f"min_cosine must lie in (0, 1], got {min_cosine}")
        if alignment_weight < 0:
            raise ValueError(f"alignment_weight must be at least 0, got {alignment_weight}")
        self.merge: MergeRule = merge
        self.window_update = window_update if cells is None else _former_window_update(cells)
        self.anchor = anchor
        self.affinity_matching = affinity_matching
        self.num_neighbors = num_neighbors
        self.min_cosine = min_cosine
        self.selection = selection
        self.alignment: Alignment = alignment
        self.alignment_weight = alignment_weight
        self.teacher = FrozenTeacher(teacher) if teacher is not None else None
        if (alignment == "teacher") != (teacher is not None):
            raise ValueError(
                "alignment='teacher' needs a teacher, a dense encoder of the same form, and no "
                f"other alignment has one; got alignment={alignment!r}, teacher={teacher!r:.40}"
            )

    @property
    def keep_ratio(self) -> float:
        """Share of tokens kept in a stage's most important level."""
        return self.budget.keep_ratios[0]

    @keep_ratio.setter
    def keep_ratio(self, ratio: float) -> None:
        self.set_keep_ratio(ratio)

    def set_keep_ratio(self, ratio: float) -> None:
        """Change the ratio of a stage's most important level; the others change in proportion."""
        ratio = check_share("keep_ratio", ratio)
        ratios = tuple(ratio * each if ratio < 1 else 1.0 for each in self._proportions)
        self.budget = replace(self.budget, keep_ratios=tuple(min(1.0, each) for each in ratios))

    def convert_weights(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Give the teacher the encoder's weights if a checkpoint has none for it."""
        return dict(weights) if self.teacher is None else with_teacher(weights)

    def faults(self, num_layers: int, num_levels: int) -> list[str]:
        """Describe what of the budget does not fit an encoder."""
        budget, faults = self.budget, []
        if budget.num_layers != num_layers:
            faults.append(
                f"stage_lengths {budget.stage_lengths} make {budget.num_layers} layers, "
                f"the encoder has {num_layers}"
            )
        if budget.num_levels != num_levels:
            faults.append(
                f"keep_ratios {budget.keep_ratios} are for {budget.num_levels} feature levels, the "
                f"encoder has {num_levels}: give {num_levels} keep_ratios, level_orders of the "
                f"levels 1 to {num_levels}, and {num_levels - 1} window_sizes (the default halves "
                "them from level to level, down to 2)"
            )
        return faults

    def plan(self, context: EncoderContext) -> DynamicPlan:
        """Return the plan of one forward pass.

        Raises:
            ValueError: the encoder has another number of layers or levels than the budget.
        """
        self.check(context.num_layers, context.layout.num_levels)
        return DynamicPlan(context, self)
