"""Focus-DETR as a token sparsifier: foreground tokens, and attention among object tokens.

Shapes: B image, N all tokens, K kept tokens, Q object tokens, C channel, V class.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from focus_detr.budget import FocusBudget
from focus_detr.foreground_loss import DISTANCES, Distance, foreground_labels, foreground_loss
from focus_detr.own_heads import OwnHeads
from focus_detr.published import from_published
from focus_detr.selector import ForegroundSelector, Modulation
from tokendetr.encoder import EncoderContext, TokenPlan, TokenSparsifier, ValuePolicy
from tokendetr.encoder.bypass import AffineBypass
from tokendetr.encoder.object_attention import DualAttention, FineScore
from tokendetr.errors import check_choice, check_share
from tokendetr.tokens import (
    Keep,
    TokenMap,
    map_counts,
    overlapping_size_ranges,
    select_tokens,
    valid_from_counts,
)

SELECTIONS = ("foreground", "random")
PUBLISHED_OPTIONS: dict[str, Any] = {
    "value_policy": "initial",
    "fine_score": "logits",
    "mask_padding": False,
    "counts": "batch",
    "size_ranges": ((-1, 64), (64, 128), (128, 256), (256, math.inf)),
}
"""Arguments of :class:`FocusSparsifier` that reproduce the published code's numbers."""


class FocusSparsifier(TokenSparsifier):
    """Updates foreground tokens, fewer in each layer, with attention among the most object-like.

    A foreground score, trained on boxes, ranks all tokens once. Every layer updates a prefix of
    that ranking. Before its deformable attention, the tokens with the best product of foreground
    and class score attend to each other (the paper's dual attention). Both scores read the
    detector's own two-stage projection and class head.

    Args:
        embed_dim: channels C of the encoder.
        num_heads: heads of the attention among object tokens.
        num_layers: encoder layers.
        num_levels: feature levels.
        num_classes: for detectors with one stage: number of classes of a projection and heads of
            the sparsifier's own. None: use the detector's, which must have two stages.
        criterion: trains those own heads, one of detrex's set criteria for classes and boxes; None:
            the detector's own, which must not be for masks.
        keep_ratio: mean share of tokens that layers update, in (0, 1].
        layer_ratios: the share of each layer; None: :func:`focus_detr.budget.cascade_ratios`.
        num_objects: maximum number of tokens that attend to each other; 0: no dual attention.
        modulation: see :class:`focus_detr.selector.ForegroundSelector`.
        strides: pixels per token of each level, finest first; None: 8, 16, 32, ...
        size_ranges: per level, the sizes of boxes that its tokens are trained on, see
            :func:`tokendetr.tokens.grid_labels`; None: ranges that end at 8 strides of their level,
            each starting in the middle of the one before.
        distance: the quantity that those ranges bound: the distance from a token to the box's
            "farthest_side" (the published code), or "half_size", half its larger side (the text).
        loss_weight: weight of the foreground loss ``loss_foreground``.
        fine_score: choose object tokens by the product of "probability" scores or of raw "logits".
        mask_padding: exclude padding from the selector and from its loss.
        counts: see :class:`focus_detr.budget.FocusBudget`.
        selection: "foreground", or "random" (for comparison).
        value_policy: see :class:`tokendetr.encoder.TokenSparsifier`.
        bypass: maps skipped tokens (:mod:`tokendetr.encoder.bypass`); None: they stay unchanged.

    Raises:
        ValueError: a value is out of range; the message names the argument.

    Source: Focus-DETR, arXiv 2307.12612, section 3. Differs: k is clamped to the number of tokens,
    the loss is computed from logits, padding is excluded; :data:`PUBLISHED_OPTIONS` reproduces the
    published code's numbers.
    """

    # Over 60 lines: an argument for every key of the configs.
    def __init__(
        self,
        *,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_layers: int = 6,
        num_levels: int = 4,
        num_classes: int | None = None,
        criterion: nn.Module | None = None,
        keep_ratio: float = 0.3,
        layer_ratios: Sequence[float] | None = None,
        num_objects: int = 300,
        modulation: Modulation = "top_down",
        strides: Sequence[int] | None = None,
        size_ranges: Sequence[Sequence[float]] | None = None,
        distance: Distance = "farthest_side",
        loss_weight: float = 1.5,
        fine_score: FineScore = "probability",
        mask_padding: bool = True,
        counts: Literal["per_image", "batch"] = "per_image",
        selection: Literal["foreground", "random"] = "foreground",
        value_policy: ValuePolicy = "updated",
        bypass: AffineBypass | None = None,
    ) -> None:
        super().__init__(value_policy=value_policy, bypass=bypass)
        ratios = None if layer_ratios is None else tuple(float(ratio) for ratio in layer_ratios)
        self.budget = FocusBudget(check_share("keep_ratio", keep_ratio), num_layers, ratios, counts)
        check_choice("selection", selection, SELECTIONS)
        check_choice("distance", distance, DISTANCES)
        if loss_weight < 0:
            raise ValueError(f"loss_weight must be at least 0, got {loss_weight}")
        doubling = (8 * 2**level for level in range(num_levels))
        self.strides = tuple(doubling if strides is None else strides)
        if len(self.strides) != num_levels:
            raise ValueError(f"strides needs {num_levels} values, got {self.strides}")
        if size_ranges is None:
            ends_px = [8 * stride for stride in self.strides[:-1]]
            self.size_ranges = overlapping_size_ranges(ends_px)
        else:
            self.size_ranges = tuple((float(low), float(high)) for low, high in size_ranges)
        if len(self.size_ranges) != num_levels:
            raise ValueError(f"size_ranges needs {num_levels} ranges, got {self.size_ranges}")
        self.distance: Distance = distance
        self.loss_weight = loss_weight
        self.mask_padding = mask_padding
        self.selection = selection
        self.selector = ForegroundSelector(
            embed_dim=embed_dim,
            num_levels=num_levels,
            modulation=modulation,
            mask_padding=mask_padding,
        )
        self.num_classes = num_classes
        if criterion is not None and num_classes is None:
            raise ValueError("criterion is for the sparsifier's own heads: give num_classes, too")
        self.criterion = criterion
        self.own_heads: OwnHeads | None = None
        if num_classes is not None:
            self.own_heads = OwnHeads(embed_dim=embed_dim, num_classes=num_classes)
        self.object_attentions = DualAttention(
            num_layers, num_objects, fine_score, embed_dim=embed_dim, num_heads=num_heads
        )

    @property
    def keep_ratio(self) -> float:
        """Mean share of tokens that layers update."""
        return self.budget.keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, ratio: float) -> None:
        self.set_keep_ratio(ratio)

    @property
    def requires(self) -> frozenset[str]:
        """Modules of the detector that are needed (:class:`tokendetr.encoder.TokenSparsifier`)."""
        if self.own_heads is None:
            return frozenset({"two_stage"})
        return frozenset({"set_criterion"} if self.criterion is None else ())

    def set_keep_ratio(self, ratio: float) -> None:
        """Change the mean share of tokens that layers update; layers' ratios follow from it.

        Raises:
            ValueError: the ratio is out of (0, 1], or the sparsifier was given ``layer_ratios``.
        """
        if self.budget.layer_ratios is not None:
            raise ValueError(
                "a keep ratio would replace the given layer_ratios: set layer_ratios=None first"
            )
        self.budget = replace(self.budget, keep_ratio=check_share("keep_ratio", ratio))

    def convert_weights(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Rename the weights of a published checkpoint to this project's keys."""
        return from_published(weights)

    def faults(self, num_layers: int, num_levels: int) -> list[str]:
        """Describe the numbers of layers and levels that do not fit the encoder."""
        own = {"num_layers": self.budget.num_layers, "num_levels": self.selector.num_levels}
        its = {"num_layers": num_layers, "num_levels": num_levels}
        return [
            f"it was built for {name}={own[name]}, the encoder has {its[name]}"
            for name in own
            if own[name] != its[name]
        ]

    def plan(self, context: EncoderContext) -> "FocusPlan":
        """Return the plan of one forward pass.

        Raises:
            ValueError: the encoder has another number of layers or levels.
            UnsupportedDetectorError: the detector around the encoder has no two-stage projection
                and heads.
        """
        self.check(context.num_layers, context.layout.num_levels)
        return FocusPlan(context, self)


class FocusPlan(TokenPlan):
    """One forward pass: one ranking, a prefix of it per layer, and the foreground loss.

    Args:
        context: the forward pass.
        sparsifier: modules and options.
    """

    def __init__(self, context: EncoderContext, sparsifier: FocusSparsifier) -> None:
        super().__init__(context)
        self.options = sparsifier
        if sparsifier.training:
            context.require_detector()  # whose pass collects the losses, also those of own heads
        self._heads = sparsifier.own_heads or context.require_detector()
        self._logits_BN = self._foreground_logits()
        if sparsifier.selection != "random":
            self.score_BN = self._logits_BN
        context.recorder.record_score("foreground", self._logits_BN)
        self._tokens = context.layout.token_counts
        score_BN = self._logits_BN.detach()
        if sparsifier.selection == "random":
            score_BN = torch.rand_like(score_BN)
        longest, _ = sparsifier.budget.layer_counts(0, self._tokens)
        counts = map_counts(self._tokens, lambda _: longest)
        self._order_BK, _ = select_tokens(score_BN, counts, context.layout)
        self._maps: dict[int, TokenMap] = {}

    def _foreground_logits(self) -> Tensor:
        context = self.context
        tokens_BNC = context.memory_BNC
        if context.query_pos_BNC is not None:
            tokens_BNC = tokens_BNC + context.query_pos_BNC
        projected_BNC = self._heads.project(tokens_BNC, context.layout)
        return self.options.selector(projected_BNC, context.layout)

    def token_map(self, layer: int, memory_BNC: Tensor) -> TokenMap:
        """Return the best tokens of the ranking, as many as the layer keeps."""
        if self.options.budget.ratios[layer] == 1:
            return self._identity
        length, counts = self.options.budget.layer_counts(layer, self._tokens)
        if length not in self._maps:
            self._maps[length] = Keep(
                index_BK=self._order_BK[:, :length],
                valid_BK=valid_from_counts(counts, length, memory_BNC.device),
            )
        return self._maps[length]

    def before_attention(self, layer: int, tokens_BKC: Tensor, token_map: TokenMap) -> Tensor:
        """Apply the attention among object tokens."""
        if not self.options.object_attentions:
            return tokens_BKC
        length, counts = self.options.budget.layer_counts(layer, self._tokens)
        valid_BK = token_map.valid_BK
        if self.options.budget.counts == "batch":  # entries that restore() discards take part too
            counts, valid_BK = map_counts(counts, lambda _: length), None
        return self.options.object_attentions(
            layer,
            tokens_BKC,
            self._logits_BN,
            token_map,
            self.context,
            class_head=self._heads.class_head,
            counts=counts,
            valid_BK=valid_BK,
        )

    def finalize(self, memory_BNC: Tensor) -> Tensor:
        """Add the foreground loss ``loss_foreground``, and those of own heads, in training."""
        losses, options = self.context.losses, self.options
        if losses is None or not options.training:
            return memory_BNC
        layout = self.context.layout
        labels_BN = foreground_labels(
            losses.targets,
            layout,
            strides=options.strides,
            size_ranges=options.size_ranges,
            distance=options.distance,
        )
        counted_BN = layout.valid_BN if options.mask_padding else None
        loss = foreground_loss(self._logits_BN, labels_BN, counted_BN)
        losses.add("loss_foreground", options.loss_weight * loss)
        if options.own_heads is not None:
            options.own_heads.add_losses(losses, memory_BNC, layout, options.criterion)
        return memory_BNC
