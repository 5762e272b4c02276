"""Object queries, decoded queries and predictions: the values passed between a detector's parts.

Shapes: B image, Q query, C channel, S decoder layer, V class, X = 2 (point) or 4 (box).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokendetr.detector.refinement import REFERENCE_EDGE

Outputs = dict[str, Tensor | list[dict[str, Tensor]] | dict[str, Tensor]]


@dataclass(frozen=True)
class ObjectQueries:
    """Input of a decoder.

    Attributes:
        content_BQC: initial state of the queries.
        reference_BQX: point or box of each query, 0..1 of the image.
        position_BQC: fixed position embedding; None if the decoder derives it from the reference.
        valid_BQ: False for padding queries, which an image with fewer tokens than queries has; None
            if there are none.
    """

    content_BQC: Tensor
    reference_BQX: Tensor
    position_BQC: Tensor | None = None
    valid_BQ: Tensor | None = None

    @property
    def num_queries(self) -> int:
        """Number of queries per image, padding queries included."""
        return self.content_BQC.shape[1]

    def prepend(self, content_BQC: Tensor, reference_BQX: Tensor) -> ObjectQueries:
        """Return these queries with extra (valid) ones in front, as denoising needs."""
        valid_BQ = self.valid_BQ
        if valid_BQ is not None:
            valid_BQ = torch.cat([valid_BQ.new_ones(content_BQC.shape[:2]), valid_BQ], dim=1)
        return ObjectQueries(
            content_BQC=torch.cat([content_BQC, self.content_BQC], dim=1),
            reference_BQX=torch.cat([reference_BQX, self.reference_BQX], dim=1),
            position_BQC=self.position_BQC,
            valid_BQ=valid_BQ,
        )


@dataclass(frozen=True)
class DecodedQueries:
    """Output of a decoder.

    Attributes:
        states: per decoder layer [B, Q, C], ready for the heads; the last layer's alone if the
            decoder returns no intermediate states.
        references: for each of ``states``, the reference [B, Q, X] its box offsets relate to.
        valid_BQ: as in :class:`ObjectQueries`.
        reference_edge: see :class:`tokendetr.detector.DeformableDecoder`.
    """

    states: list[Tensor]
    references: list[Tensor]
    valid_BQ: Tensor | None = None
    reference_edge: float = REFERENCE_EDGE


@dataclass(frozen=True)
class Predictions:
    """Class logits and boxes of a stack of decoder layers.

    Attributes:
        logits_SBQV: one logit per class.
        boxes_SBQ4: cxcywh, 0..1 of the image.
        valid_BQ: as in :class:`ObjectQueries`.
    """

    logits_SBQV: Tensor
    boxes_SBQ4: Tensor
    valid_BQ: Tensor | None = None

    def __getitem__(self, queries: slice) -> Predictions:
        """Return the predictions of a range of queries."""
        return Predictions(
            self.logits_SBQV[:, :, queries],
            self.boxes_SBQ4[:, :, queries],
            None if self.valid_BQ is None else self.valid_BQ[:, queries],
        )

    def as_outputs(self, *, aux: bool) -> Outputs:
        """Return upstream's output dict, of the last layer.

        ``aux`` adds the other layers' under ``aux_outputs``.
        """
        layers = [self._layer(index) for index in range(len(self.logits_SBQV))]
        outputs: Outputs = dict(layers[-1])
        if aux:
            outputs["aux_outputs"] = layers[:-1]
        return outputs

    def _layer(self, index: int) -> dict[str, Tensor]:
        return {"pred_logits": self.logits_SBQV[index], "pred_boxes": self.boxes_SBQ4[index]}


def learned_queries(content_QC: Tensor, batch_size: int) -> Tensor:
    """Expand one learned embedding per query to every image: [Q, C] -> [B, Q, C]."""
    return content_QC[None].expand(batch_size, -1, -1)
