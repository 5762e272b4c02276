"""Losses of all decoder layers, of the encoder's proposals and of denoising queries.

Shapes: B image, Q query, V class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detrex.modeling.criterion import SetCriterion
from detrex.utils import get_world_size, is_dist_avail_and_initialized
from torch import Tensor, nn

from tokendetr.detector.targets import Target
from tokendetr.errors import ConfigError

Matches = list[tuple[Tensor, Tensor]]
_LOSSES = ("class", "boxes")
LOSS_NAMES = ("loss_class", "loss_bbox", "loss_giou")
_SUFFIXES = re.compile(r"(_enc|_dn|_[0-9]+)+$")


def world_average_boxes(targets: list[Target], device: torch.device) -> float:
    """Return the number of boxes per process, averaged over all processes and at least 1.

    Losses are divided by it. DDP averages the processes' gradients, so a common divisor makes the
    result that of one process with the whole batch: every box counts the same, however unevenly
    boxes are spread. Every process must call it in every iteration, with boxes or without.
    """
    count = sum(len(target["labels"]) for target in targets)
    if is_dist_avail_and_initialized():
        total = torch.tensor([float(count)], device=device)
        torch.distributed.all_reduce(total)
        return max(total.item() / get_world_size(), 1.0)
    return max(float(count), 1.0)


def layer_weights(
    weights: Mapping[str, float], *, num_layers: int, suffixes: Sequence[str] = ()
) -> dict[str, float]:
    """Give the losses of every layer the last layer's weights.

    Losses of other heads have suffixes too.

    Args:
        weights: weight of each loss of the last layer.
        num_layers: decoder layers; all but the last get suffixes ``_0``, ``_1``, ...
        suffixes: further ones, such as ``_enc``.
    """
    every = ["", *suffixes, *(f"_{index}" for index in range(num_layers - 1))]
    return {name + suffix: weight for suffix in every for name, weight in weights.items()}


def check_losses(criterion: nn.Module) -> None:
    """Check that one of this project's criteria knows its losses, and the loss of each weight.

    A criterion of another project may have further losses, whose names only its code knows.

    Raises:
        ConfigError: the message names losses and weights; or there is no dict of weights.
    """
    weights: object = getattr(criterion, "weight_dict", None)
    if not isinstance(weights, Mapping):
        raise ConfigError(
            f"model.criterion is a {type(criterion).__name__} whose weight_dict is "
            f"{weights!r}: it must have the weight of each loss"
        )
    if type(criterion).__module__.partition(".")[0] != __name__.partition(".")[0]:
        return
    losses: Sequence[str] = criterion.losses  # type: ignore[assignment]
    if unknown := sorted(set(losses) - set(_LOSSES)):
        raise ConfigError(
            f"model.criterion.losses has {', '.join(unknown)}, and the losses are "
            f"{', '.join(_LOSSES)}"
        )
    unknown = [name for name in weights if _SUFFIXES.sub("", name) not in LOSS_NAMES]
    if unknown:
        raise ConfigError(
            f"model.criterion.weight_dict has {', '.join(unknown)}, and no loss has that name: "
            f"the losses are {', '.join(LOSS_NAMES)}, with suffixes such as _0, _enc and _dn"
        )


def _with_precision_of(boxes: Tensor, targets: list[Target]) -> list[Target]:
    """Return targets whose boxes have at least the precision of the predictions.

    detrex's matcher needs both in one dtype.
    """
    return [
        {**t, "boxes": t["boxes"].to(torch.promote_types(t["boxes"].dtype, boxes.dtype))}
        for t in targets
    ]


class LayerwiseCriterion(SetCriterion):
    """One-to-one losses of every layer.

    ``outputs`` is upstream's dict: ``pred_logits`` and ``pred_boxes`` of the last layer, and
    optionally ``aux_outputs`` (a list of such dicts, losses suffixed ``_0``, ``_1``, ...) and
    ``enc_outputs`` (one such dict, losses suffixed ``_enc``).

    Attributes:
        binary_encoder_targets: train the encoder's proposals on class 0 for every object.
    """

    binary_encoder_targets = False

    def matched_losses(
        self,
        outputs: Mapping[str, Any],
        targets: list[Target],
        num_boxes: float,
        *,
        suffix: str = "",
        matches: Matches | None = None,
    ) -> dict[str, Tensor]:
        """Return all losses of one set of predictions, under suffixed names.

        Args:
            outputs: upstream's dict with ``pred_logits`` [B, Q, V] and ``pred_boxes`` [B, Q, 4].
            targets: ground truth of each image.
            num_boxes: divisor of the losses.
            suffix: appended to each loss's name.
            matches: assignment of queries to boxes; None runs the matcher.

        Returns:
            Scalars by name; zeros if there are no queries, as in a batch of tiny images.
        """
        if outputs["pred_logits"].shape[1] == 0:
            nothing = outputs["pred_logits"].sum() + outputs["pred_boxes"].sum()
            return {name + suffix: nothing.clone() for name in LOSS_NAMES}
        targets = _with_precision_of(outputs["pred_boxes"], targets)
        if matches is None:
            matches = self.matcher(outputs, targets)
        losses: dict[str, Tensor] = {}
        for name in self.losses:
            losses.update(self.get_loss(name, outputs, targets, matches, num_boxes))
        return {name + suffix: value for name, value in losses.items()}

    def forward(  # type: ignore[override]  # upstream's detectors' criteria drop return_indices
        self, outputs: Mapping[str, Any], targets: list[Target]
    ) -> dict[str, Tensor]:
        """Return the unweighted losses of every layer in ``outputs``."""
        num_boxes = world_average_boxes(targets, outputs["pred_logits"].device)
        return self.layer_losses(outputs, targets, num_boxes)

    def layer_losses(
        self, outputs: Mapping[str, Any], targets: list[Target], num_boxes: float
    ) -> dict[str, Tensor]:
        """Return losses of the last layer, the others and the proposals, over ``num_boxes``."""
        losses = self.matched_losses(outputs, targets, num_boxes)
        for index, aux_outputs in enumerate(outputs.get("aux_outputs", ())):
            losses |= self.matched_losses(aux_outputs, targets, num_boxes, suffix=f"_{index}")
        if "enc_outputs" in outputs:
            encoder_targets = targets
            if self.binary_encoder_targets:
                encoder_targets = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
            losses |= self.matched_losses(
                outputs["enc_outputs"], encoder_targets, num_boxes, suffix="_enc"
            )
        return losses


class ProposalCriterion(LayerwiseCriterion):
    """Losses of every layer; the config chooses the targets of the encoder's proposals.

    Args:
        num_classes: number of classes.
        matcher: Hungarian matcher.
        weight_dict: weight of each loss by name.
        losses: names of the losses to compute: "class", "boxes".
        eos_coef: weight of "no object" with ``loss_class_type="ce_loss"``; None is 0.1.
        loss_class_type: "focal_loss" or "ce_loss".
        alpha: focal loss's weight of positives.
        gamma: focal loss's focusing exponent.
        two_stage_binary_cls: train proposals on class 0 for every object.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module,
        weight_dict: dict[str, float],
        losses: Sequence[str] = ("class", "boxes"),
        eos_coef: float | None = None,
        loss_class_type: str = "focal_loss",
        alpha: float = 0.25,
        gamma: float = 2,
        two_stage_binary_cls: bool = False,
    ) -> None:
        no_object = 0.1 if eos_coef is None else eos_coef
        super().__init__(
            num_classes, matcher, weight_dict, losses, no_object, loss_class_type, alpha, gamma
        )
        self.binary_encoder_targets = two_stage_binary_cls


def positive_matches(targets: list[Target], num_groups: int, group_size: int) -> Matches:
    """Return the known assignment of denoising queries: place i of every group restores box i."""
    matches = []
    for target in targets:
        count = len(target["labels"])
        box = torch.arange(count, device=target["labels"].device)
        start = torch.arange(num_groups, device=box.device) * group_size
        matches.append(((start[:, None] + box).flatten(), box.repeat(num_groups)))
    return matches


class DenoisingCriterion(LayerwiseCriterion):
    """Adds the losses of denoising queries, suffixed ``_dn`` and ``_dn_0``, ``_dn_1``, ..."""

    def forward(  # type: ignore[override]  # upstream's DINO passes dn_metas third
        self,
        outputs: Mapping[str, Any],
        targets: list[Target],
        dn_metas: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return the unweighted losses of matching and denoising queries.

        Args:
            outputs: predictions of the matching queries.
            targets: ground truth.
            dn_metas: ``single_padding`` (places per group), ``dn_num`` (groups) and
                ``output_known_lbs_bboxes`` (predictions of the denoising queries, as ``outputs``);
                None if the batch has no denoising queries, which gives zero losses.
        """
        # Before the branch below: a process that skipped this all-reduce would block the others.
        num_boxes = world_average_boxes(targets, outputs["pred_logits"].device)
        losses = self.layer_losses(outputs, targets, num_boxes)
        num_aux = len(outputs.get("aux_outputs", ()))
        suffixes = ["_dn", *(f"_dn_{index}" for index in range(num_aux))]
        if not dn_metas or "output_known_lbs_bboxes" not in dn_metas:
            zero = outputs["pred_logits"].new_zeros(())
            return losses | {n + suffix: zero.clone() for suffix in suffixes for n in LOSS_NAMES}
        known = dn_metas["output_known_lbs_bboxes"]
        num_groups = dn_metas["dn_num"]
        matches = positive_matches(targets, num_groups, dn_metas["single_padding"])
        for suffix, layer in zip(suffixes, [known, *known.get("aux_outputs", ())], strict=True):
            losses |= self.matched_losses(
                layer, targets, num_boxes * num_groups, suffix=suffix, matches=matches
            )
        return losses
