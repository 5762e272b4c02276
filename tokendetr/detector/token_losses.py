"""A detector's own losses for what tokens predict: methods train heads in the encoder with them.

Shapes: B image, K tokens that are judged, C class.
"""

import torch
from torch import Tensor

from tokendetr.detector.criterion import Matches
from tokendetr.encoder.aux_losses import ImageTargets, Supervision

_NEVER_LOGIT = -1e4
"""Logit of a padding entry: its focal loss and gradient are 0 in every float type."""


def add_detection_losses(
    context: Supervision,
    logits_BKC: Tensor,
    boxes_BK4: Tensor,
    *,
    valid_BK: Tensor | None,
    num_boxes: float,
    suffix: str,
) -> None:
    """Ask for the detector's own losses on predictions of tokens, with the detector's weights.

    Args:
        context: the forward pass; its criterion is one of detrex' set criteria.
        logits_BKC: a logit per class.
        boxes_BK4: normalised cxcywh.
        valid_BK: bool, False for entries that are no tokens: they are neither matched nor trained.
            None where all are.
        num_boxes: what the losses are divided by.
        suffix: of the losses' names.

    Source: Sparse DETR, arXiv 2111.14330, section 3.4. Differs: padding entries count nothing.
    """
    outputs = {"pred_logits": logits_BKC, "pred_boxes": boxes_BK4}
    targets = [_as_target(target) for target in context.targets]
    criterion = context.criterion
    if valid_BK is None:
        matches = criterion.matcher(outputs, targets)
    else:
        matches = _match_valid(criterion.matcher, outputs, targets, valid_BK)
        outputs["pred_logits"] = logits_BKC.masked_fill(~valid_BK[..., None], _NEVER_LOGIT)
    for name in criterion.losses:
        losses = criterion.get_loss(name, outputs, targets, matches, num_boxes)
        for key, value in losses.items():
            context.add(key + suffix, value * criterion.weight_dict.get(key, 1.0))


def _as_target(target: ImageTargets) -> dict[str, Tensor]:
    return {"labels": target.labels, "boxes": target.boxes_cxcywh_norm}


def _match_valid(
    matcher: torch.nn.Module,
    outputs: dict[str, Tensor],
    targets: list[dict[str, Tensor]],
    valid_BK: Tensor,
) -> Matches:
    """Match each image's valid entries on their own."""
    matches = []
    for image, target in enumerate(targets):
        index_E = valid_BK[image].nonzero()[:, 0]
        own = {name: value[image : image + 1, index_E] for name, value in outputs.items()}
        ((query, truth),) = matcher(own, [target])
        matches.append((index_E[query.to(index_E.device)], truth))
    return matches
