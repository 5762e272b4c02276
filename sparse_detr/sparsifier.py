"""Sparse DETR as a token sparsifier: score tokens once, and keep the same best ones in all layers.

Shapes: B image, N all tokens, K kept tokens, C channel.
"""

import warnings
from collections.abc import Mapping
from typing import Any, Literal, cast

from torch import nn

from sparse_detr.checkpoints import from_published, is_published
from sparse_detr.keep_ratio import RatioSparsifier
from sparse_detr.plan import SparsePlan, kept_tokens
from tokendetr.detector.heads import build_heads, start_at_references
from tokendetr.detector.token_losses import OBJECTIVES, Objective
from tokendetr.encoder import EncoderContext, ValuePolicy
from tokendetr.encoder.bypass import AffineBypass
from tokendetr.encoder.object_attention import DualAttention, FineScore
from tokendetr.errors import check_choice
from tokendetr.layers.score_head import ScoreHead
from tokendetr.tokens import MassBudget

Selection = Literal["dam", "objectness", "random"]
Projection = Literal["detector", "own"]
Padding = Literal["left_out", "counted"]


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


class SparseSparsifier(RatioSparsifier):
    """Updates only the tokens with the best scores.

    Scores are trained to predict the decoder cross-attention map ("dam"), or to detect objects
    ("objectness"); "random" draws tokens in every forward pass.

    Args:
        keep_ratio: share of an image's real tokens that is updated, in [0, 1]. 1 is the dense
            encoder. At 0 nothing is scored and the encoder's parameters get no gradient, which
            distributed training allows with ``train.ddp.find_unused_parameters=True``.
            :meth:`set_keep_ratio` changes it at any time.
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
        num_objects: maximum number of kept tokens that attend to each other before every layer's
            deformable attention: Focus-DETR's dual attention, chosen by the product of this
            method's score and the detector's class score; 0: none. With any, keep ratio 1 is not
            the dense encoder.
        num_heads: heads of that attention.
        fine_score: the two scores of that product, see
            :data:`tokendetr.encoder.object_attention.FINE_SCORES`.

    Raises:
        ValueError: a value is out of range; the message names the argument.

    Source: Sparse DETR, arXiv 2111.14330, section 3; ``num_objects``: Focus-DETR, arXiv 2307.12612,
    appendix A.2.3. Parameter names of the score head are the published code's. Differs: padding is
    excluded, heads run in training only, and the decoder's attention is splatted onto the tokens
    whose values it reads.
    """

    # Over 60 lines: an argument for every key of the configs.
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
        padding: Padding = "left_out",
        value_policy: ValuePolicy = "updated",
        bypass: AffineBypass | None = None,
        mass_budget: MassBudget | None = None,
        num_objects: int = 0,
        num_heads: int = 8,
        fine_score: FineScore = "probability",
    ) -> None:
        super().__init__(value_policy=value_policy, bypass=bypass)
        for name, wanted in (("mass_budget", mass_budget), ("num_objects", num_objects)):
            if wanted and selection == "random":
                raise ValueError(f"{name} needs scores, and selection='random' has none")
        self.mass_budget = mass_budget
        self.num_classes = num_classes
        projection = _current_projection(projection)
        check_choice("selection", selection, ("dam", "objectness", "random"))
        check_choice("projection", projection, ("detector", "own"))
        check_choice("padding", padding, ("left_out", "counted"))
        check_choice("objective", objective, OBJECTIVES)
        if dam_weight < 0:
            raise ValueError(f"dam_weight must be at least 0, got {dam_weight}")
        self.set_keep_ratio(keep_ratio)
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
        self.object_attentions = DualAttention(
            num_layers, num_objects, fine_score, embed_dim=embed_dim, num_heads=num_heads
        )

    @property
    def requires(self) -> frozenset[str]:
        """Modules of the detector that are needed (:class:`tokendetr.encoder.TokenSparsifier`)."""
        needs = set()
        if not self.has_projection and self.selection != "random":
            needs.add("two_stage")
        if self.object_attentions:
            needs.add("two_stage")  # its class head
        if self.auxiliary_heads or self.selection == "objectness":
            needs.add("set_criterion")
        return frozenset(needs)

    def init_weights(self) -> None:
        """Zero the box heads again, after a transformer has initialized every matrix by Xavier."""
        start_at_references(getattr(self, "bbox_embed", ()))

    def kept_tokens(self, valid_tokens: int) -> int:
        """Return the number of an image's real tokens that are kept (:func:`kept_tokens`)."""
        return kept_tokens(self.keep_ratio, valid_tokens)

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
