"""A detector's own losses for what tokens predict: methods train heads in the encoder with them.

Shapes: B image, K tokens that are judged, C class.
"""

import torch
from torch import Tensor

from tokendetr.detector.criterion import Matches
from tokendetr.encoder.aux_losses import AuxLosses, ImageTargets


def add_detection_losses(
    aux_losses: AuxLosses,
    logits_BKC: Tensor,
    boxes_BK4: Tensor,
    *,
    valid_BK: Tensor | None,
    num_boxes: float,
    suffix: str,
) -> None:
    """Add the detector's own losses on predictions of tokens, with the detector's weights.

    Args:
        aux_losses: of the forward pass; its criterion is one of detrex' set criteria.
        logits_BKC: a logit per class.
        boxes_BK4: normalised cxcywh.
        valid_BK: bool, False for entries that are no tokens: they are neither matched nor trained.
            None where all are.
        num_boxes: what the losses are divided by.
        suffix: of the losses' names.

    Source: Sparse DETR, arXiv 2111.14330, section 3.4. Differs: padding entries count nothing.
    """
    targets = [_as_target(target) for target in aux_losses.targets]
    outputs = {"pred_logits": logits_BKC, "pred_boxes": boxes_BK4}
    criterion = aux_losses.criterion
    if valid_BK is None:
        matches = criterion.matcher(outputs, targets)
    else:
        matches = _match_valid(criterion.matcher, outputs, targets, valid_BK)
        outputs, targets, matches = _without_padding(outputs, targets, matches, valid_BK)
    for name in criterion.losses:
        losses = criterion.get_loss(name, outputs, targets, matches, num_boxes)
        for key, value in losses.items():
            aux_losses.add(key + suffix, value * criterion.weight_dict.get(key, 1.0))


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


def _without_padding(
    outputs: dict[str, Tensor],
    targets: list[dict[str, Tensor]],
    matches: Matches,
    valid_BK: Tensor,
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], Matches]:
    """Return the valid entries of a batch as one image with all targets.

    The losses sum over entries and divide by ``num_boxes``, so they are those of the batch; padding
    is not among them, whatever a criterion makes of a logit (log(p) of a sentinel is not finite).
    """
    place_BK = valid_BK.flatten().cumsum(0).view_as(valid_BK) - 1
    offsets = [0]
    for target in targets[:-1]:
        offsets.append(offsets[-1] + len(target["labels"]))
    queries, truths = [], []
    for place_K, offset, (query, truth) in zip(place_BK, offsets, matches, strict=True):
        queries.append(place_K[query.to(place_K.device)])
        truths.append(truth + offset)
    together = {name: torch.cat([target[name] for target in targets]) for name in targets[0]}
    entries = {name: value[valid_BK][None] for name, value in outputs.items()}
    return entries, [together], [(torch.cat(queries), torch.cat(truths))]
