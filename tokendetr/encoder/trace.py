"""What sparsifiers did in a forward pass, recorded only where someone asked for it.

with record_tokens() as trace:
    model(batched_inputs)
trace.forwards[-1].layers[0].token_map
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor

from tokendetr.tokens import LevelLayout, TokenMap


@dataclass
class LayerTrace:
    """One encoder layer.

    Attributes:
        token_map: the map the layer worked with.
        scores: what the choice was made from, by name, such as ``score`` [B, N].
    """

    token_map: TokenMap
    scores: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class ForwardTrace:
    """One pass of one encoder, or of one stage of a backbone.

    Attributes:
        layout: geometry of the batch.
        layers: the encoder's layers in order.
        maps: what became known of the tokens after the encoder, by name, such as
            ``decoder_attention`` [B, N].
        name: what it is, such as ``encoder``.
    """

    layout: LevelLayout
    layers: list[LayerTrace] = field(default_factory=list)
    maps: dict[str, Tensor] = field(default_factory=dict)
    name: str = "encoder"


@dataclass
class TokenTrace:
    """All encoder passes and backbone stages inside one ``with record_tokens()`` block, in
    order."""

    forwards: list[ForwardTrace] = field(default_factory=list)


class _Recorder:
    """What the current thread records: the trace, and scores for its next layer."""

    def __init__(self) -> None:
        self.trace = TokenTrace()
        self.scores: dict[str, Tensor] = {}


_RECORDER: ContextVar[_Recorder | None] = ContextVar("tokendetr_recorder", default=None)


@contextmanager
def record_tokens() -> Iterator[TokenTrace]:
    """Record every encoder pass of this thread inside the ``with`` block."""
    recorder = _Recorder()
    token = _RECORDER.set(recorder)
    try:
        yield recorder.trace
    finally:
        _RECORDER.reset(token)


def begin_forward(layout: LevelLayout, name: str = "encoder") -> None:
    """Note that an encoder begins to work on a batch (called by the encoder)."""
    recorder = _RECORDER.get()
    if recorder is not None:
        recorder.trace.forwards.append(ForwardTrace(layout, name=name))
        recorder.scores = {}


def current_forward() -> ForwardTrace | None:
    """Return the encoder pass that is being recorded, or None where nobody asked for it."""
    recorder = _RECORDER.get()
    return recorder.trace.forwards[-1] if recorder is not None and recorder.trace.forwards else None


def record_score(name: str, score: Tensor) -> None:
    """Note what the next layer's map is chosen from (called by sparsifiers)."""
    recorder = _RECORDER.get()
    if recorder is not None:
        recorder.scores[name] = score.detach()


def record_layer(token_map: TokenMap) -> None:
    """Note the map of the next layer (called by the encoder)."""
    recorder = _RECORDER.get()
    if recorder is not None:
        recorder.trace.forwards[-1].layers.append(LayerTrace(token_map, recorder.scores))
        recorder.scores = {}


def record_layer_score(name: str, score_BK: Tensor) -> None:
    """Note a score of a layer's reduced tokens, made while it works (called by sparsifiers).

    It is kept as [B, N], with NaN for tokens that are not among them.
    """
    forward = current_forward()
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


@contextmanager
def paused() -> Iterator[None]:
    """Record nothing inside the ``with`` block."""
    token = _RECORDER.set(None)
    try:
        yield
    finally:
        _RECORDER.reset(token)
