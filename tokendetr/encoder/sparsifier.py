"""The protocol of a sparse-token method: a sparsifier, and its plan of one forward pass.

Shapes: B image, N all tokens, K reduced tokens, C channel, L level.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from tokendetr.encoder.aux_losses import AuxLosses
from tokendetr.encoder.bypass import AffineBypass
from tokendetr.encoder.detector_view import DetectorView, require_detector
from tokendetr.encoder.trace import Recorder
from tokendetr.errors import NotSparsifiableError, UnsupportedDetectorError, check_choice
from tokendetr.layers.encoder_layer import SplitFeedForward
from tokendetr.tokens import Identity, LevelLayout, TokenMap

ValuePolicy = Literal["updated", "initial"]
VALUE_POLICIES = ("updated", "initial")


@dataclass(frozen=True)
class EncoderContext:
    """Inputs of a plan: everything that a method may read in one pass of an encoder.

    Attributes:
        layout: geometry and padding of the batch.
        memory_BNC: the tokens that enter the encoder.
        query_pos_BNC: their positions, or None.
        reference_points_BNL2: their normalized reference points in every level.
        num_layers: number of encoder layers.
        run_dense: runs all layers on all tokens without gradients; returns the memory [B, N, C].
        detector: view of the detector that owns the encoder; None if the encoder runs alone.
        losses: auxiliary losses and targets of the pass; None outside of a detector's training.
        recorder: receives scores; records nothing outside of ``record_tokens()``.
        batched_inputs: the detector's own input, detectron2's list of dicts; None if the encoder
            runs alone.
    """

    layout: LevelLayout
    memory_BNC: Tensor
    query_pos_BNC: Tensor | None
    reference_points_BNL2: Tensor
    num_layers: int
    run_dense: Callable[[], Tensor]
    detector: DetectorView | None = None
    losses: AuxLosses | None = None
    recorder: Recorder = field(default_factory=Recorder)
    batched_inputs: object = None

    def require_detector(self) -> DetectorView:
        """Return the detector around the encoder.

        Raises:
            UnsupportedDetectorError: the encoder runs alone.
        """
        return require_detector(self.detector)

    def require_losses(self) -> AuxLosses:
        """Return the auxiliary losses of the pass.

        Raises:
            UnsupportedDetectorError: the encoder runs alone, or its detector is not in training
                mode.
        """
        self.require_detector()
        if self.losses is None:
            raise UnsupportedDetectorError(
                "the sparsifier is in training mode, and the detector around it is not: "
                "call train() or eval() on the whole detector"
            )
        return self.losses


class TokenPlan:
    """The token maps of one forward pass; this base class keeps all tokens.

    All state of a pass belongs here, so that sparsifiers stay stateless.

    Args:
        context: the forward pass.

    Attributes:
        score_BN: learned scores that tokens were ranked by, with gradients, [B, N]; None if there
            are none.
    """

    score_BN: Tensor | None = None

    def __init__(self, context: EncoderContext) -> None:
        self.context = context
        self._identity = Identity(
            num_tokens=context.layout.num_tokens, valid_BN=context.layout.valid_BN
        )

    def token_map(self, layer: int, memory_BNC: Tensor) -> TokenMap:
        """Return the map of a layer.

        If it is the same object as for the previous layer, the encoder keeps the reduced tokens
        instead of reducing the memory again.

        Args:
            layer: index of the layer, from 0.
            memory_BNC: all tokens before the layer. Without gradients later layers may write over
                them: clone what is needed afterwards.
        """
        return self._identity

    def before_attention(self, layer: int, tokens_BKC: Tensor, token_map: TokenMap) -> Tensor:
        """Apply a block of the method's own to the reduced tokens; unchanged here."""
        return tokens_BKC

    def feed_forward(self, layer: int) -> SplitFeedForward | None:
        """Return another feed-forward network for some of a layer's tokens, or None."""
        return None

    def after_layer(self, layer: int, tokens_BKC: Tensor, token_map: TokenMap) -> None:
        """Read a layer's results, for auxiliary heads; nothing here."""

    def finalize(self, memory_BNC: Tensor) -> Tensor:
        """Return the encoder's output; the place to add losses to ``context.losses``."""
        return memory_BNC


class TokenSparsifier(nn.Module, ABC):
    """A method that chooses the tokens of each encoder layer.

    Args:
        value_policy: values of the attention: the memory as updated by the layers so far
            ("updated"), or the features that entered the encoder ("initial").
        bypass: maps the tokens that :class:`~tokendetr.tokens.Keep` maps skip; None: they stay
            unchanged.

    Raises:
        ValueError: unknown policy.
    """

    def __init__(
        self, *, value_policy: ValuePolicy = "updated", bypass: AffineBypass | None = None
    ) -> None:
        super().__init__()
        check_choice("value_policy", value_policy, VALUE_POLICIES)
        self.value_policy = value_policy
        self.bypass = bypass

    @property
    def requires(self) -> frozenset[str]:
        """Modules of the detector that the method needs, checked when the model is built.

        "two_stage": the projection and class head that read encoder tokens; "set_criterion": a
        criterion with ``matcher``, ``losses``, ``get_loss`` and ``weight_dict``.
        """
        return frozenset()

    def faults(self, num_layers: int, num_levels: int) -> list[str]:
        """Describe everything about the method that does not fit an encoder; nothing here.

        Args:
            num_layers: of the encoder.
            num_levels: feature levels of the encoder.
        """
        return []

    def check(self, num_layers: int, num_levels: int) -> None:
        """Check that the method fits an encoder.

        Raises:
            ValueError: it does not; the message lists all :meth:`faults`.
        """
        faults = self.faults(num_layers, num_levels)
        if faults:
            raise ValueError(f"{type(self).__name__} does not fit its encoder: {'; '.join(faults)}")

    @abstractmethod
    def plan(self, context: EncoderContext) -> TokenPlan:
        """Return the plan of one forward pass."""

    def set_keep_ratio(self, ratio: float) -> None:
        """Change the keep ratio, without changing any weight.

        Args:
            ratio: share of tokens, in (0, 1]; the method defines of which tokens.

        Raises:
            NotSparsifiableError: the method has no keep ratio.
            ValueError: the ratio is out of range, or cannot replace other options.
        """
        raise NotSparsifiableError(f"{type(self).__name__} has no keep ratio to change")

    def convert_weights(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Rename the weights of a checkpoint of the whole model to this project's keys.

        A method whose published checkpoints have other keys recognizes and renames them; other
        weights are returned unchanged. Loading calls a method of this name on every module of the
        model, so a detector may have one too; a prefix that all keys share is removed before.
        """
        return dict(weights)
