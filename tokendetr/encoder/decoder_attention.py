"""The decoder cross-attention map (DAM): attention of a running detector's decoder to each token.

Shapes: B image, N all tokens, Q query, C channel, M head, L level, P point, X = 2 or 4.
"""

import inspect
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tokendetr.encoder.detector_view import DetectorView
from tokendetr.encoder.forward_context import ForwardContext
from tokendetr.errors import UnsupportedDetectorError
from tokendetr.layers.deformable_attention import locations_and_weights
from tokendetr.layers.hooked import Hooked
from tokendetr.tokens import LevelLayout, splat_attention

MAP_NAME = "decoder_attention"
"""Name of the map in a trace (:attr:`tokendetr.encoder.trace.ForwardTrace.maps`)."""


class DecoderAttention(Hooked):
    """Context manager that sums the decoder's attention to each token.

    Forward pre-hooks on the decoder's cross-attentions read it, so detectors need no change.
    Denoising queries are excluded, since they start from noised ground truth, and so are further
    passes of a decoder that runs several times in training (Mr.DETR): evaluation has the first one
    alone. Padding queries, which an image with fewer tokens than queries has in a batch, count
    nothing. Nothing here carries a gradient.

    Args:
        detector: the running detector.
        layout: geometry of the batch.
        half_cell: see :func:`tokendetr.tokens.splat_attention`.

    Source: Sparse DETR, arXiv 2111.14330, section 3.3 and appendix A.2.
    """

    def __init__(
        self, detector: DetectorView, layout: LevelLayout, *, half_cell: bool = True
    ) -> None:
        self._detector = detector
        self._layout = layout
        self._half_cell = half_cell
        self._mass_BN: Tensor | None = None
        self._valid_BQ: Tensor | None = None
        self._passes = 0

    @property
    def mass_BN(self) -> Tensor:
        """Attention weight per token, summed over layers, heads and queries, float32 [B, N].

        Raises:
            UnsupportedDetectorError: the decoder has not run.
        """
        if self._mass_BN is None:
            raise UnsupportedDetectorError(
                "the decoder's cross-attention did not run after the encoder"
            )
        return self._mass_BN

    def _hooks(self) -> Iterator[RemovableHandle]:
        decoder = self._detector.decoder
        if decoder is not None:
            yield decoder.register_forward_pre_hook(self._begin_pass, with_kwargs=True)
        for attention in self._detector.cross_attentions:
            yield attention.register_forward_pre_hook(self._add_call, with_kwargs=True)

    def _begin_pass(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._passes += 1
        queries = args[0] if args else kwargs.get("queries")
        # Upstream's decoders take tensors: they have no padding queries.
        self._valid_BQ = getattr(queries, "valid_BQ", None)

    @torch.no_grad()
    def _add_call(
        self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._passes > 1:
            return
        call = inspect.signature(attention.forward).bind(*args, **kwargs).arguments
        query = (
            call["query"] if call.get("query_pos") is None else call["query"] + call["query_pos"]
        )
        query_BQC = query if getattr(attention, "batch_first", True) else query.transpose(0, 1)
        chosen = self._detector.matching_queries(query_BQC.shape[1], self._layout)
        order = self._level_order(call)
        locations_BQMLP2, weights_BQMLP = locations_and_weights(
            attention,
            query_BQC[:, chosen],
            call["reference_points"][:, chosen],
            [self._layout.level_shapes[level] for level in order],
        )
        # Back to the encoder's order of levels; turning around undoes itself.
        locations_BQMLP2 = locations_BQMLP2[:, :, :, order]
        weights_BQMLP = weights_BQMLP[:, :, :, order]
        if self._valid_BQ is not None:
            padding_BQ111 = ~self._valid_BQ[:, chosen, None, None, None]
            weights_BQMLP = weights_BQMLP.masked_fill(padding_BQ111, 0.0)
        mass_BN = splat_attention(
            locations_BQMLP2, weights_BQMLP, self._layout.level_shapes, half_cell=self._half_cell
        )
        self._mass_BN = mass_BN if self._mass_BN is None else self._mass_BN + mass_BN

    def _level_order(self, call: dict[str, Any]) -> list[int]:
        """Return the encoder's number of each of the decoder's levels.

        MaskDINO's decoder has the finest level first, its pixel decoder the coarsest.

        Raises:
            UnsupportedDetectorError: the decoder attends to other levels than the encoder's.
        """
        ours = [tuple(map(int, shape)) for shape in self._layout.level_shapes]
        known = list(range(len(ours)))
        shapes = call.get("spatial_shapes", call.get("input_spatial_shapes"))
        if call.get("level_shapes") is not None or shapes is None:
            return known
        theirs = [tuple(shape) for shape in torch.as_tensor(shapes).tolist()]
        for order in (known, known[::-1]):
            if [ours[level] for level in order] == theirs:
                return order
        raise UnsupportedDetectorError(
            f"the decoder attends to levels of {theirs}, and the encoder's are {ours}: "
            "use selection='random' or 'objectness'"
        )


def record_decoder_attention(forward: ForwardContext, layout: LevelLayout) -> None:
    """Record the attention of the decoder that is going to run, if the pass is recorded.

    Does nothing without a detector or a deformable decoder.
    """
    trace, detector, losses = forward.recorder.forward, forward.detector, forward.losses
    if trace is None or detector is None or losses is None:
        return
    attention = DecoderAttention(detector, layout)
    try:
        losses.enter(attention)
    except UnsupportedDetectorError:
        return

    def record() -> None:
        with suppress(UnsupportedDetectorError):  # the decoder did not run
            trace.maps[MAP_NAME] = attention.mass_BN

    losses.when_decoded(record)
