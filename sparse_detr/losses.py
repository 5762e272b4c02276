"""What Sparse DETR trains its scores and its encoder on.

Shapes: B image, N all tokens, K tokens that are judged, C class.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tokendetr.detector.criterion import Matches
from tokendetr.supervision import ImageTargets, Supervision
from tokendetr.tokens import topk_valid

_NEVER_LOGIT = -1e4
"""Logit of a padding entry: its focal loss and gradient are 0 in every float type."""


def decoder_attention_loss(
    score_BN: Tensor,
    mass_BN: Tensor,
    counts: Sequence[int],
    *,
    valid_BN: Tensor | None,
    valid_counts: Sequence[int] | None = None,
    counts_padding: bool = False,
) -> Tensor:
    """Return how badly scores predict which tokens the decoder looks at most.

    The target is 1 for the ``counts[b]`` real tokens of the greatest mass, else 0. The loss is the
    binary cross entropy, averaged over an image's real tokens and over images.

    Args:
        score_BN: logits.
        mass_BN: the decoder's attention to each token; carries no gradient.
        counts: kept tokens of each image.
        valid_BN: bool, True where a token is real; None where all are.
        valid_counts: real tokens of each image, where known.
        counts_padding: average over padding as well, as the published code does.

    Source: Sparse DETR, arXiv 2111.14330, equation 2. Differs: padding counts nothing.
    """
    index_BK, chosen_BK = topk_valid(mass_BN, counts, valid_BN=valid_BN, valid_counts=valid_counts)
    ones_BK = torch.ones_like(index_BK) if chosen_BK is None else chosen_BK
    target_BN = torch.zeros_like(score_BN).scatter(1, index_BK, ones_BK.to(score_BN.dtype))
    loss_BN = F.binary_cross_entropy_with_logits(score_BN, target_BN, reduction="none")
    if valid_BN is None or counts_padding:
        return loss_BN.mean()
    valid_BN = valid_BN.to(loss_BN.dtype)
    return ((loss_BN * valid_BN).sum(dim=1) / valid_BN.sum(dim=1).clamp_min(1)).mean()


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
