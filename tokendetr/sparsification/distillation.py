"""Losses that distill a dense detector into its sparse copy, without labels.

Targets are the dense encoder's memory, the dense detector's outputs, or both. For outputs, the
sparse memory goes through the decoder with the queries of the dense pass, and through the two-stage
head. No matching is needed: queries correspond one to one, and so do tokens.

Shapes: B image, N all tokens, C channel, Q query, S decoder layer, V class, R any rows.
"""

from typing import Any, Literal

import torch
from detrex.layers import box_cxcywh_to_xyxy
from fvcore.nn import giou_loss
from torch import Tensor, nn
from torch.nn import functional as F

from tokendetr.detector.queries import Predictions
from tokendetr.sparsification.decoding import proposals
from tokendetr.sparsification.optimization import Schedule
from tokendetr.sparsification.scores import SCORE_RATIO, attention_loss, sparse_scores
from tokendetr.sparsification.teacher import DensePass

__all__ = [
    "RATIOS",
    "TARGETS",
    "Targets",
    "distillation_loss",
    "memory_loss",
    "output_loss",
    "prediction_loss",
    "schedule_of",
]

Targets = Literal["memory", "outputs", "both"]
TARGETS: tuple[Targets, ...] = ("memory", "outputs", "both")
"""What is distilled: the encoder's memory, the outputs of decoder and two-stage head, or both."""

RATIOS = (0.1, 0.2, 0.3, 0.5)
"""Keep ratios that one set of weights is trained for; one is drawn per iteration."""

_SCHEDULES: dict[Targets, tuple[float, int]] = {
    "memory": (2e-4, 0),
    "outputs": (4e-4, 20),
    "both": (4e-4, 20),
}
"""Learning rate and iterations of warm-up. Outputs react to Adam's first steps, of full size in
every weight, more than the memory does."""

_MEMORY_WEIGHT = 10.0
_BOX_WEIGHTS = (5.0, 2.0)
"""Weights of the L1 and the generalized IoU loss of boxes; DETR's."""


def schedule_of(targets: Targets, iterations: int) -> Schedule:
    """Return the schedule of a distillation."""
    lr, warmup = _SCHEDULES[targets]
    return Schedule(iterations, lr, clip_norm=0.1, warmup=warmup)


def distillation_loss(student: nn.Module, dense: DensePass, targets: Targets) -> Tensor:
    """Return the loss of a sparse detector's encoder, and of its scores if it has any.

    Args:
        student: the sparse detector, in a pass that is open.
        dense: the teacher's pass, with attention; and with the decoder's call for outputs.
        targets: one of :data:`TARGETS`.
    """
    encoder: Any = student.transformer.encoder  # type: ignore[union-attr]
    mass_BN = dense.mass_BN
    assert mass_BN is not None
    score_BN = sparse_scores(student, dense)
    memory_BNC = dense.encode(encoder)
    loss = memory_BNC.new_zeros(())
    if targets != "outputs":
        weight_BN = torch.ones_like(mass_BN) if score_BN is None else score_BN.detach().sigmoid()
        loss = loss + _MEMORY_WEIGHT * memory_loss(memory_BNC, dense, weight_BN)
    if targets != "memory":
        loss = loss + output_loss(student, memory_BNC, dense)
    if score_BN is not None:
        loss = loss + attention_loss(score_BN, mass_BN, dense, SCORE_RATIO)
    return loss


def memory_loss(memory_BNC: Tensor, dense: DensePass, weight_BN: Tensor) -> Tensor:
    """Return the weighted squared error of a memory against the dense encoder's, per channel.

    Args:
        memory_BNC: of the sparse encoder.
        dense: the teacher's pass.
        weight_BN: weight of each token, at least 0; padding is excluded.
    """
    weight_BN = weight_BN * dense.layout.valid_BN
    error_BN = (memory_BNC - dense.memory_BNC).square().mean(dim=-1)
    return (error_BN * weight_BN).sum() / weight_BN.sum().clamp_min(1e-9)


def output_loss(student: nn.Module, memory_BNC: Tensor, dense: DensePass) -> Tensor:
    """Return the loss of the outputs for a memory, against the dense detector's.

    It is the sum of :func:`prediction_loss` over the decoder's layers, plus that of the two-stage
    head if there is one.

    Args:
        student: the sparse detector, whose decoder and heads are used.
        memory_BNC: of its encoder.
        dense: the teacher's pass, with the decoder's call.
    """
    call = dense.decoding
    assert call is not None
    layers = len(call.predictions.logits_SBQV)
    loss = layers * prediction_loss(call.repeat(student, memory_BNC), call.predictions)
    proposed = proposals(student, memory_BNC, dense.layout)
    if proposed is None:
        return loss
    assert call.proposals is not None
    return loss + prediction_loss(proposed, call.proposals)


def prediction_loss(found: Predictions, wanted: Predictions) -> Tensor:
    """Return the loss of predictions whose queries correspond to the teacher's one to one.

    It is the Kullback-Leibler divergence of the class probabilities plus the L1 and generalized IoU
    losses of the boxes, which the teacher's confidence weighs; all divided by the sum of the
    confidences. Padding queries have no loss. It is not finite if a box is not.

    Args:
        found: the sparse detector's.
        wanted: the dense detector's, of as many layers; the loss is their mean.
    """
    valid_BQ = wanted.valid_BQ
    logits_RV, boxes_R4 = _rows(found, valid_BQ)
    wanted_logits_RV, wanted_boxes_R4 = _rows(wanted, valid_BQ)
    if not boxes_R4.isfinite().all():  # giou_loss would fail by an assertion
        return boxes_R4.sum()
    probability_RV = wanted_logits_RV.sigmoid()
    classes = _cross_entropy(logits_RV, probability_RV) - _cross_entropy(
        wanted_logits_RV, probability_RV
    )
    confidence_R = probability_RV.amax(dim=-1)
    distance_R = (boxes_R4 - wanted_boxes_R4).abs().sum(dim=-1)
    overlap_R = giou_loss(box_cxcywh_to_xyxy(boxes_R4), box_cxcywh_to_xyxy(wanted_boxes_R4))
    distance_weight, overlap_weight = _BOX_WEIGHTS
    boxes_R = distance_weight * distance_R + overlap_weight * overlap_R
    return (classes + (confidence_R * boxes_R).sum()) / confidence_R.sum().clamp_min(1e-9)


def _cross_entropy(logits_RV: Tensor, probability_RV: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits_RV, probability_RV, reduction="sum")


def _rows(predictions: Predictions, valid_BQ: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return logits and boxes of the real queries of all layers, one per row."""
    logits_SBQV, boxes_SBQ4 = predictions.logits_SBQV, predictions.boxes_SBQ4
    if valid_BQ is None:
        return logits_SBQV.flatten(0, 2), boxes_SBQ4.flatten(0, 2)
    return logits_SBQV[:, valid_BQ].flatten(0, 1), boxes_SBQ4[:, valid_BQ].flatten(0, 1)
