"""A detector's decoder, run again on another memory with the queries of the dense pass.

Since the queries are the same, the predictions for both memories correspond one to one, and no
matching is needed to compare them.

Shapes: B image, N all tokens, C channel, Q query, S decoder layer, X = 2 or 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tokendetr.detector.heads import predict
from tokendetr.detector.queries import DecodedQueries, Predictions
from tokendetr.encoder.detector_view import DetectorView
from tokendetr.errors import NotSparsifiableError
from tokendetr.layers.hooked import Hooked
from tokendetr.tokens import LevelLayout

__all__ = ["DecoderCall", "DecoderRecorder", "proposals"]


@dataclass(frozen=True)
class DecoderCall:
    """A dense detector's call of its decoder, with the predictions.

    Attributes:
        args: positional arguments.
        kwargs: arguments by name.
        memory_BNC: the encoder's output, which is among the arguments.
        predictions: of every decoder layer.
        proposals: of the two-stage head, see :func:`proposals`; None without one.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    memory_BNC: Tensor
    predictions: Predictions
    proposals: Predictions | None

    def repeat(self, detector: nn.Module, memory_BNC: Tensor) -> Predictions:
        """Return what a detector's decoder predicts for another memory and the same queries."""

        def other(value: Any) -> Any:
            return memory_BNC if value is self.memory_BNC else value

        kwargs = {name: other(value) for name, value in self.kwargs.items()}
        decoder = DetectorView(detector).transformer.decoder
        decoded = decoder(*(other(value) for value in self.args), **kwargs)
        return _predictions(detector, decoded, kwargs)


class DecoderRecorder(Hooked):
    """Context manager that records a dense detector's call of its decoder.

    Args:
        detector: ours or detrex's.

    Raises:
        NotSparsifiableError: the detector has no decoder with class and box heads.
    """

    def __init__(self, detector: nn.Module) -> None:
        self._detector = detector
        decoder = DetectorView(detector).decoder
        heads = (getattr(detector, name, None) for name in ("class_embed", "bbox_embed"))
        if decoder is None or not all(isinstance(head, nn.ModuleList) for head in heads):
            raise _cannot_decode(
                detector, "has no transformer.decoder with lists of heads class_embed, bbox_embed"
            )
        self._decoder = decoder
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []

    def _hooks(self) -> Iterator[RemovableHandle]:
        yield self._decoder.register_forward_hook(self._record, with_kwargs=True)

    def _record(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], decoded: Any
    ) -> None:
        self._calls.append((args, kwargs, decoded))

    def call(self, memory_BNC: Tensor, layout: LevelLayout) -> DecoderCall:
        """Return the recorded call.

        Args:
            memory_BNC: the encoder's output.
            layout: geometry of the batch.

        Raises:
            NotSparsifiableError: the decoder does not read the encoder's output as it is.
        """
        for args, kwargs, decoded in self._calls[:1]:
            if any(value is memory_BNC for value in (*args, *kwargs.values())):
                found = _predictions(self._detector, decoded, kwargs)
                proposed = proposals(self._detector, memory_BNC, layout)
                return DecoderCall(args, kwargs, memory_BNC, found, proposed)
        raise _cannot_decode(self._detector, "changes the memory between encoder and decoder")


def proposals(detector: nn.Module, memory_BNC: Tensor, layout: LevelLayout) -> Predictions | None:
    """Return what a two-stage head predicts of every token; None for a detector without one.

    Tokens that can start no box (padding and the border) count as padding queries.
    """
    view = DetectorView(detector)
    if not view.has_proposals:
        return None
    anchors_logit_BN4, usable_BN = layout.proposals()
    tokens_BNC = view.project(memory_BNC, layout)
    boxes_BN4 = (view.box_head(tokens_BNC) + anchors_logit_BN4).sigmoid()
    return Predictions(view.class_head(tokens_BNC)[None], boxes_BN4[None], usable_BN)


def _predictions(detector: Any, decoded: Any, kwargs: dict[str, Any]) -> Predictions:
    """Return the heads' predictions of what our decoders, or detrex's, return."""
    if not isinstance(decoded, DecodedQueries):
        states_SBQC, references_SBQX = decoded
        first_BQX = kwargs["reference_points"]
        decoded = DecodedQueries(list(states_SBQC), [first_BQX, *references_SBQX[:-1]])
    layers = detector.transformer.decoder.num_layers
    return predict(decoded, detector.class_embed, detector.bbox_embed, layers)


def _cannot_decode(detector: nn.Module, reason: str) -> NotSparsifiableError:
    return NotSparsifiableError(
        f"{type(detector).__name__} {reason}, so its outputs cannot be compared one to one: "
        'distill with targets="memory" (--targets memory)'
    )
