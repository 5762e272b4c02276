"""Opt-in recording of the token maps and scores of forward passes.

with record_tokens() as trace:
    model(batched_inputs)
trace.forwards[-1].layers[0].token_map
"""

from dataclasses import dataclass, field

from torch import Tensor

from tokendetr.tokens import LevelLayout, TokenMap

__all__ = [
    "ForwardTrace",
    "LayerTrace",
    "Recorder",
    "ReductionTrace",
    "TokenTrace",
    "TraceRecorder",
]


@dataclass
class LayerTrace:
    """One encoder layer.

    Attributes:
        token_map: the map the layer worked with.
        scores: scores that the map was chosen by, by name, such as ``score`` [B, N].
    """

    token_map: TokenMap
    scores: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class ForwardTrace:
    """One pass of one encoder, or of one stage of a backbone.

    Attributes:
        layout: geometry of the batch.
        layers: the encoder's layers in order.
        maps: values of the tokens recorded after the encoder, by name, such as
            ``decoder_attention`` [B, N].
        name: of the pass or stage, such as ``encoder``.
    """

    layout: LevelLayout
    layers: list[LayerTrace] = field(default_factory=list)
    maps: dict[str, Tensor] = field(default_factory=dict)
    name: str = "encoder"


@dataclass
class ReductionTrace:
    """One block of a transformed backbone that reduces the tokens of whole images.

    Attributes:
        block: its number, from 0.
        token_map: the reduction.
        grid: rows and columns of the tokens before it; None if they form no grid, as after an
            earlier reduction.
    """

    block: int
    token_map: TokenMap
    grid: tuple[int, int] | None


@dataclass
class TokenTrace:
    """Everything recorded in one ``with record_tokens()`` block, in order.

    Attributes:
        forwards: encoder passes and backbone stages.
        reductions: reductions of backbones' tokens.
    """

    forwards: list[ForwardTrace] = field(default_factory=list)
    reductions: list[ReductionTrace] = field(default_factory=list)


class Recorder:
    """Receives the token maps and scores of a pass; this base class discards them."""

    @property
    def forward(self) -> ForwardTrace | None:
        """The encoder pass or backbone stage that is being recorded; None if none is."""
        return None

    def begin_forward(self, layout: LevelLayout, name: str = "encoder") -> None:
        """Begin the trace of an encoder or a backbone stage."""

    def record_score(self, name: str, score: Tensor) -> None:
        """Record what the next layer's map is chosen from."""

    def record_layer(self, token_map: TokenMap) -> None:
        """Record the map of the next layer."""

    def record_layer_score(self, name: str, score_BK: Tensor) -> None:
        """Record a score of the latest layer's reduced tokens as [B, N], NaN for the others."""

    def record_reduction(
        self, block: int, token_map: TokenMap, grid: tuple[int, int] | None
    ) -> None:
        """Record how a block of a backbone reduces the tokens of whole images."""


class TraceRecorder(Recorder):
    """Records into a :class:`TokenTrace`, and into those of the recorder around it.

    Args:
        outer: the recorder of the enclosing block, whose trace receives everything too.
    """

    def __init__(self, outer: Recorder | None = None) -> None:
        self.trace = TokenTrace()
        self._traces: list[TokenTrace] = [self.trace]
        if isinstance(outer, TraceRecorder):
            self._traces += outer._traces
        self._scores: dict[str, Tensor] = {}

    @property
    def forward(self) -> ForwardTrace | None:
        """The encoder pass or backbone stage that is being recorded."""
        return self.trace.forwards[-1] if self.trace.forwards else None

    def begin_forward(self, layout: LevelLayout, name: str = "encoder") -> None:
        """Begin the trace of an encoder or a backbone stage."""
        forward = ForwardTrace(layout, name=name)
        for trace in self._traces:
            trace.forwards.append(forward)
        self._scores = {}

    def record_score(self, name: str, score: Tensor) -> None:
        """Record what the next layer's map is chosen from."""
        self._scores[name] = score.detach()

    def record_layer(self, token_map: TokenMap) -> None:
        """Record the map of the next layer."""
        self.trace.forwards[-1].layers.append(LayerTrace(token_map, self._scores))
        self._scores = {}

    def record_reduction(
        self, block: int, token_map: TokenMap, grid: tuple[int, int] | None
    ) -> None:
        """Record how a block of a backbone reduces the tokens of whole images."""
        self.trace.reductions.append(ReductionTrace(block, token_map, grid))

    def record_layer_score(self, name: str, score_BK: Tensor) -> None:
        """Record a score of the latest layer's reduced tokens as [B, N], NaN for the others."""
        forward = self.forward
        if forward is None or not forward.layers:
            return
        layer = forward.layers[-1]
        anchor_BK, valid_BK = layer.token_map.anchor_BK, layer.token_map.valid_BK
        score_BK = score_BK.detach().float()
        if valid_BK is not None:
            score_BK = score_BK.masked_fill(~valid_BK, float("nan"))
        if anchor_BK is not None:
            score_BN = score_BK.new_full(forward.layout.valid_BN.shape, float("nan"))
            score_BK = score_BN.scatter(1, anchor_BK, score_BK)
        layer.scores[name] = score_BK
