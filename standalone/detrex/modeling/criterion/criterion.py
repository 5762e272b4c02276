"""The criterion of detection transformers: match, then sum classification and box losses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detrex.layers.box_ops import _paired_generalized_box_iou, box_cxcywh_to_xyxy
from detrex.modeling.criterion._counting import average_num_boxes
from detrex.modeling.losses.focal_loss import sigmoid_focal_loss as elementwise_focal_loss
from torch import nn

Targets = Sequence[Mapping[str, torch.Tensor]]
Indices = Sequence[tuple[torch.Tensor, torch.Tensor]]
Losses = dict[str, torch.Tensor]


def sigmoid_focal_loss(
    inputs: torch.Tensor,
    targets: torch.Tensor,
    num_boxes: float,
    alpha: float = 0.25,
    gamma: float = 2,
) -> torch.Tensor:
    """Compute the focal loss: mean over queries, sum over images and classes, per true box.

    Args:
        inputs: logits [B, Q, C].
        targets: 0 or 1, the shape of ``inputs``.
        num_boxes: divisor of the sum.
        alpha: weight of positives against negatives; unused if negative.
        gamma: focusing exponent, which down-weights easy examples.
    """
    loss = elementwise_focal_loss(inputs, targets, alpha=alpha, gamma=gamma, reduction="none")
    return loss.mean(1).sum() / num_boxes


def _batch_and_place(indices: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Join per-image indices into one (image, index) pair that selects from [B, Q, ...]."""
    image = torch.cat([torch.full_like(index, i) for i, index in enumerate(indices)])
    return image, torch.cat(list(indices))


class SetCriterion(nn.Module):
    """Losses of predictions matched with the ground truth.

    Args:
        num_classes: number of classes, without "no object".
        matcher: matches outputs with targets, e.g. ``HungarianMatcher``.
        weight_dict: factor of each loss by name; the detector applies it.
        losses: losses to compute, of "class" and "boxes".
        eos_coef: weight of "no object" in the cross entropy.
        loss_class_type: "focal_loss" or "ce_loss".
        alpha: alpha of the focal loss.
        gamma: gamma of the focal loss.

    Raises:
        ValueError: another ``loss_class_type``.
    """

    empty_weight: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module,
        weight_dict: dict[str, float],
        losses: Sequence[str] = ("class", "boxes"),
        eos_coef: float = 0.1,
        loss_class_type: str = "focal_loss",
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        if loss_class_type not in ("focal_loss", "ce_loss"):
            raise ValueError(
                f"loss_class_type must be 'focal_loss' or 'ce_loss', got {loss_class_type!r}"
            )
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = weight_dict
        self.losses = losses
        self.alpha = alpha
        self.gamma = gamma
        self.eos_coef = eos_coef
        self.loss_class_type = loss_class_type
        if loss_class_type == "ce_loss":
            empty_weight = torch.ones(num_classes + 1)
            empty_weight[-1] = eos_coef
            self.register_buffer("empty_weight", empty_weight)

    def loss_labels(
        self,
        outputs: Mapping[str, torch.Tensor],
        targets: Targets,
        indices: Indices,
        num_boxes: float,
    ) -> Losses:
        """Compute the classification loss; arguments as for :meth:`get_loss`."""
        logits = outputs["pred_logits"]
        matched = torch.cat(
            [target["labels"][truth] for target, (_, truth) in zip(targets, indices, strict=True)]
        )
        labels = torch.full(
            logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device
        )
        labels[self._get_src_permutation_idx(indices)] = matched
        if self.loss_class_type == "ce_loss":
            loss = F.cross_entropy(logits.transpose(1, 2), labels, self.empty_weight)
        else:
            one_hot = F.one_hot(labels, logits.shape[2] + 1)[..., :-1].to(logits.dtype)
            loss = logits.shape[1] * sigmoid_focal_loss(
                logits, one_hot, num_boxes=num_boxes, alpha=self.alpha, gamma=self.gamma
            )
        return {"loss_class": loss}

    def loss_boxes(
        self,
        outputs: Mapping[str, torch.Tensor],
        targets: Targets,
        indices: Indices,
        num_boxes: float,
    ) -> Losses:
        """Compute L1 and generalized IoU losses of matched boxes; see :meth:`get_loss`."""
        pred = outputs["pred_boxes"][self._get_src_permutation_idx(indices)]
        truth = torch.cat(
            [target["boxes"][index] for target, (_, index) in zip(targets, indices, strict=True)]
        )
        overlap = _paired_generalized_box_iou(box_cxcywh_to_xyxy(pred), box_cxcywh_to_xyxy(truth))
        return {
            "loss_bbox": F.l1_loss(pred, truth, reduction="none").sum() / num_boxes,
            "loss_giou": (1 - overlap).sum() / num_boxes,
        }

    def _get_src_permutation_idx(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (image, query) of every matched prediction."""
        return _batch_and_place([query for query, _ in indices])

    def _get_tgt_permutation_idx(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (image, box) of every matched target."""
        return _batch_and_place([truth for _, truth in indices])

    def get_loss(
        self,
        loss: str,
        outputs: Mapping[str, torch.Tensor],
        targets: Targets,
        indices: Indices,
        num_boxes: float,
        **kwargs: Any,
    ) -> Losses:
        """Compute one of the configured losses.

        Args:
            loss: "class" or "boxes".
            outputs: "pred_logits" [B, Q, C] and "pred_boxes" [B, Q, 4] (normalized cxcywh).
            targets: per image "labels" [G] and "boxes" [G, 4] (normalized cxcywh).
            indices: per image the matched queries and boxes.
            num_boxes: divisor of the sums.
            **kwargs: passed to the loss.

        Raises:
            KeyError: an unknown loss.
        """
        functions: dict[str, Callable[..., Losses]] = {
            "class": self.loss_labels,
            "boxes": self.loss_boxes,
        }
        if loss not in functions:
            raise KeyError(f"unknown loss {loss!r} in losses; available: {sorted(functions)}")
        return functions[loss](outputs, targets, indices, num_boxes, **kwargs)

    def forward(
        self, outputs: Mapping[str, Any], targets: Targets, return_indices: bool = False
    ) -> Any:
        """Match and compute all losses.

        Args:
            outputs: "pred_logits" and "pred_boxes" of the last layer, and "aux_outputs", a list of
                the same for the layers before.
            targets: per image "labels" [G] and "boxes" [G, 4] (normalized cxcywh).
            return_indices: also return the matches.

        Returns:
            The losses by name, those of layer i with the suffix ``_i``; with ``return_indices``
            also the matches of all layers, the last layer at the end.
        """
        last = {name: value for name, value in outputs.items() if name != "aux_outputs"}
        num_boxes = average_num_boxes(targets, outputs["pred_logits"].device)
        losses: Losses = {}
        all_indices = []
        layers = [("", last)]
        layers += [(f"_{i}", aux) for i, aux in enumerate(outputs.get("aux_outputs", ()))]
        for suffix, layer_outputs in layers:
            indices = self.matcher(layer_outputs, targets)
            all_indices.append(indices)
            for loss in self.losses:
                found = self.get_loss(loss, layer_outputs, targets, indices, num_boxes)
                losses.update({name + suffix: value for name, value in found.items()})
        if return_indices:
            return losses, [*all_indices[1:], all_indices[0]]
        return losses
