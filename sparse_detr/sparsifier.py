"""Sparse DETR as a token sparsifier: score tokens once, and keep the same best ones in all layers.

Shapes: B image, N all tokens, K kept tokens, C channel.
"""

import warnings
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from sparse_detr.checkpoints import from_published, is_published
from tokendetr.detector.criterion import world_average_boxes
from tokendetr.detector.heads import build_heads, start_at_references
from tokendetr.detector.token_losses import (
    OBJECTIVES,
    Objective,
    add_detection_losses,
    attention_ranking_loss,
    attention_value_loss,
    decoder_attention_loss,
)
from tokendetr.encoder import EncoderContext, TokenPlan, TokenSparsifier, ValuePolicy
from tokendetr.encoder.bypass import AffineBypass
from tokendetr.encoder.decoder_attention import DecoderAttention
from tokendetr.layers.score_head import ScoreHead
from tokendetr.tokens import (
    Counts,
    Keep,
    MassBudget,
    TokenMap,
    TracedCounts,
    map_counts,
    topk_valid,
)

Selection = Literal["dam", "objectness", "random"]
Projection = Literal["detector", "own"]
PaddingRule = Literal["left_out", "counted"]


def _current_projection(projection: str) -> Projection:
    """Return a projection's name; the former one, "host", is read with a warning."""
    if projection != "host":
        return cast(Projection, projection)
    warnings.warn(
        "projection='host' is now projection='detector'; change it in your config",
        FutureWarning,
        stacklevel=3,
    )
    return "detector"


class SparseSparsifier(TokenSparsifier):
    """Updates only the tokens with the best scores.

    Scores are trained to predict the decoder cross-attention map ("dam"), or to detect objects
    ("objectness"); "random" draws tokens in every forward pass.

    Args:
        keep_ratio: share of an image's real tokens that is updated, in [0, 1]. 1 is the dense
            encoder. At 0 nothing is scored and the encoder's parameters get no gradient, which
            distributed training allows with ``train.ddp.find_unused_parameters=True``. It may be
            changed at any time.
        embed_dim: channels C of the tokens.
        num_classes: classes of the detector, for the heads in training.
        num_layers: layers of the encoder.
        selection: the meaning of the scores, see above.
        projection: "detector" scores tokens through the detector's two-stage projection; "own"
            through one of the same form that is trained for the scores alone, which detectors with
            one stage need. The former name "host" of "detector" is still read, with a warning.
        auxiliary_heads: train class and box heads on the tokens after every layer but the last;
            unused in evaluation.
        dam_weight: weight of the score's loss, at least 0.
        objective: loss of the scores with selection "dam": "bce" predicts the set of the most
            attended tokens, "smooth_l1" their attention, "ranking" its order.
        half_cell: see :func:`tokendetr.tokens.splat_attention`; the published code has False.
        padding: "left_out" excludes padding from the scores' mean, their loss and the heads in
            training; "counted" includes it, as the published code does.
        value_policy: see :class:`tokendetr.encoder.TokenSparsifier`.
        bypass: maps skipped tokens (:mod:`tokendetr.encoder.bypass`); None: they stay unchanged.
        mass_budget: in evaluation, keeps fewer tokens of easy images and more of hard ones, with
            ``keep_ratio`` as their mean (not in the paper); None: every image keeps the same share.

    Raises:
        ValueError: a value is out of range; the message names the argument.

    Source: Sparse DETR, arXiv 2111.14330, section 3. Parameter names of the score head are the
    published code's. Differs: padding is excluded, heads run in training only, and the decoder's
    attention is splatted onto the tokens whose values it reads.
    """

    def __init__(
        self,
        *,
        keep_ratio: float = 0.3,
        embed_dim: int = 256,
        num_classes: int = 80,
        num_layers: int = 6,
        selection: Selection = "dam",
        projection: Projection = "detector",
        auxiliary_heads: bool = True,
        dam_weight: float = 1.0,
        objective: Objective = "bce",
        half_cell: bool = True,
        padding: PaddingRule = "left_out",
        value_policy: ValuePolicy = "updated",
        bypass: AffineBypass | None = None,
        mass_budget: MassBudget | None = None,
    ) -> None:
        super().__init__(value_policy=value_policy, bypass=bypass)
        if mass_budget is not None and selection == "random":
            raise ValueError("mass_budget needs scores, and selection='random' has none")
        self.mass_budget = mass_budget
        projection = _current_projection(projection)
        for name, value, choices in (
            ("selection", selection, ("dam", "objectness", "random")),
            ("projection", projection, ("detector", "own")),
            ("padding", padding, ("left_out", "counted")),
            ("objective", objective, OBJECTIVES),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {value!r}")
        if dam_weight < 0:
            raise ValueError(f"dam_weight must be at least 0, got {dam_weight}")
        self.keep_ratio = keep_ratio
        self.num_layers = num_layers
        self.selection = selection
        self.auxiliary_heads = auxiliary_heads
        self.dam_weight = dam_weight
        self.objective = objective
        self.half_cell = half_cell
        self.counts_padding = padding == "counted"
        self.has_projection = projection == "own" and selection != "random"
        if self.has_projection:
            self.enc_output = nn.Linear(embed_dim, embed_dim)
            self.enc_output_norm = nn.LayerNorm(embed_dim)
        if selection == "dam":
            self.score_head = ScoreHead(embed_dim=embed_dim, valid_mean=not self.counts_padding)
        heads = num_layers - 1 if auxiliary_heads else 0
        if selection == "objectness":
            heads += 1  # the last pair scores the tokens before the first layer
        if heads:
            self.class_embed, self.bbox_embed = build_heads(
                embed_dim=embed_dim,
                num_classes=num_classes,
                count=heads,
                shared=False,
                sized_references=True,
            )

    @property
    def requires(self) -> frozenset[str]:
        """Modules of the detector that are needed (:class:`tokendetr.encoder.TokenSparsifier`)."""
        needs = set()
        if not self.has_projection and self.selection != "random":
            needs.add("two_stage")
        if self.auxiliary_heads or self.selection == "objectness":
            needs.add("set_criterion")
        return frozenset(needs)

    def init_weights(self) -> None:
        """Zero the box heads again, after a transformer has initialized every matrix by Xavier."""
        start_at_references(getattr(self, "bbox_embed", ()))

    @property
    def keep_ratio(self) -> float:
        """Share of an image's real tokens that is updated, in [0, 1]."""
        return self._keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, ratio: float) -> None:
        if not 0 <= ratio <= 1:
            raise ValueError(f"keep_ratio must lie in [0, 1], got {ratio}")
        self._keep_ratio = float(ratio)

    def set_keep_ratio(self, ratio: float) -> None:
        """Change the share of an image's real tokens that is updated."""
        self.keep_ratio = ratio

    def kept_tokens(self, valid_tokens: int) -> int:
        """Return the number of an image's real tokens that are kept.

        Source: the published code, which keeps one more than the ratio's share, rounded down.
        Differs: never more than there are, and none at ratio 0.
        """
        if self.keep_ratio == 0:
            return 0
        return min(int(self.keep_ratio * valid_tokens) + 1, valid_tokens)

    def convert_weights(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Rename the weights of a published checkpoint; return others unchanged.

        :mod:`sparse_detr.checkpoints` has the names.
        """
        return from_published(weights) if is_published(weights) else dict(weights)

    def faults(self, num_layers: int, num_levels: int) -> list[str]:
        """Describe a number of layers that does not fit the encoder; levels always do."""
        if num_layers == self.num_layers:
            return []
        return [f"its num_layers is {self.num_layers}, the encoder has {num_layers}"]

    def plan(self, context: EncoderContext) -> "SparsePlan":
        """Return the plan of one forward pass.

        Raises:
            ValueError: the encoder has another number of layers.
            UnsupportedDetectorError: the detector around the encoder is needed and missing.
        """
        self.check(context.num_layers, context.layout.num_levels)
        return SparsePlan(context, self)


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
        self._valid_BN = layout.valid_BN if layout.may_have_padding else None
        self._judged: list[tuple[int, Tensor, TokenMap]] = []
        self._map: TokenMap = self._identity
        training = sparsifier.training
        if not training and sparsifier.keep_ratio == 1:
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
            counts = self._counts if training else self._evaluated_counts(score_BN)
            index_BK, valid_BK = topk_valid(
                score_BN, counts, valid_BN=self._valid_BN, valid_counts=self._valid_counts
            )
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
            self._judged.append((-1, token_BNC, self._identity))
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
        _, usable_BN = layout.proposals()
        token_BNC = token_BNC.masked_fill(~usable_BN[..., None], 0.0)
        return self.options.enc_output_norm(self.options.enc_output(token_BNC))

    def token_map(self, layer: int, memory_BNC: Tensor) -> TokenMap:
        """Return the one map of all layers."""
        return self._map

    def after_layer(self, layer: int, tokens_BKC: Tensor, token_map: TokenMap) -> None:
        """Store a layer's tokens for its heads, in training."""
        options = self.options
        judged = options.auxiliary_heads and layer < options.num_layers - 1
        if options.training and judged and token_map.num_tokens:
            self._judged.append((layer, tokens_BKC, token_map))

    def finalize(self, memory_BNC: Tensor) -> Tensor:
        """Add the losses of the heads, ``loss_..._enc_<layer>`` and ``loss_..._tokens``."""
        if self._judged:
            losses = self.context.require_losses()
            targets = [{"labels": target.labels} for target in losses.targets]
            num_boxes = world_average_boxes(targets, memory_BNC.device)
            anchor_BN4, _ = self.context.layout.proposals()
            for layer, tokens_BKC, token_map in self._judged:
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
            if options.objective != "bce":
                rule = {"smooth_l1": attention_value_loss, "ranking": attention_ranking_loss}
                loss = rule[options.objective](score_BN, attention.mass_BN, self._valid_BN)
                losses.add("loss_dam", options.dam_weight * loss)
                return
            loss = decoder_attention_loss(
                score_BN,
                attention.mass_BN,
                self._counts,
                valid_BN=self._valid_BN,
                valid_counts=self._valid_counts,
                counts_padding=options.counts_padding,
            )
            losses.add("loss_dam", options.dam_weight * loss)

        losses.when_decoded(add_loss)
