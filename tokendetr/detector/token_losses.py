"""Losses on encoder tokens.

They are the detector's own on the tokens' predictions, and losses on scores that predict the
decoder's attention.

Shapes: B image, N all tokens, K tokens with predictions or kept tokens, E real ones of an image,
V class.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tokendetr.detector.criterion import Matches
from tokendetr.encoder.aux_losses import AuxLosses, ImageTargets
from tokendetr.layers.precision import at_least_float32
from tokendetr.tokens import Counts, chosen_tokens, topk_valid

Objective = Literal["bce", "smooth_l1", "ranking"]
OBJECTIVES: tuple[Objective, ...] = ("bce", "smooth_l1", "ranking")


def add_detection_losses(
    aux_losses: AuxLosses,
    logits_BKV: Tensor,
    boxes_BK4: Tensor,
    *,
    valid_BK: Tensor | None,
    num_boxes: float,
    suffix: str,
    criterion: Any = None,
) -> None:
    """Add a criterion's losses on predictions of tokens, with its weights.

    Args:
        aux_losses: of the forward pass.
        logits_BKV: a logit per class.
        boxes_BK4: normalized cxcywh.
        valid_BK: bool, False for padding entries, which are neither matched nor trained; None if
            there are none.
        num_boxes: divisor of the losses.
        suffix: of the losses' names.
        criterion: one of detrex's set criteria; None: the detector's own.

    Source: Sparse DETR, arXiv 2111.14330, section 3.4. Differs: padding entries have no loss.
    """
    targets = [_as_target(target) for target in aux_losses.targets]
    outputs = {
        "pred_logits": at_least_float32(logits_BKV),
        "pred_boxes": at_least_float32(boxes_BK4),
    }
    criterion = aux_losses.criterion if criterion is None else criterion
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

    The losses are sums over entries divided by ``num_boxes``, so one image gives the losses of the
    batch. Padding is removed by index: masking it by a sentinel logit would make criteria that take
    log(p) infinite.
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


def decoder_attention_loss(
    score_BN: Tensor,
    mass_BN: Tensor,
    counts: Counts,
    *,
    valid_BN: Tensor | None,
    valid_counts: Counts | None = None,
    counts_padding: bool = False,
) -> Tensor:
    """Return the loss of scores that predict the tokens with most decoder attention.

    The target is 1 for the ``counts[b]`` real tokens of the greatest mass, else 0. The loss is the
    binary cross-entropy, averaged over an image's real tokens and then over images.

    Args:
        score_BN: logits.
        mass_BN: the decoder's attention to each token; carries no gradient.
        counts: kept tokens of each image.
        valid_BN: bool, True where a token is real; None if all are.
        valid_counts: real tokens of each image, if known.
        counts_padding: average over padding as well, as the published code does.

    Source: Sparse DETR, arXiv 2111.14330, equation 2. Differs: padding has no loss.
    """
    index_BK, chosen_BK = topk_valid(mass_BN, counts, valid_BN=valid_BN, valid_counts=valid_counts)
    target_BN = chosen_tokens(index_BK, chosen_BK, score_BN.shape[1]).to(score_BN.dtype)
    loss_BN = F.binary_cross_entropy_with_logits(score_BN, target_BN, reduction="none")
    if valid_BN is None or counts_padding:
        return loss_BN.mean()
    valid_BN = valid_BN.to(loss_BN.dtype)
    return ((loss_BN * valid_BN).sum(dim=1) / valid_BN.sum(dim=1).clamp_min(1)).mean()


def attention_value_loss(score_BN: Tensor, mass_BN: Tensor, valid_BN: Tensor | None) -> Tensor:
    """Return the smooth L1 distance between the scores' sigmoids and the decoder's attention.

    Args:
        score_BN: logits.
        mass_BN: the decoder's attention to each token; divided by its image's maximum here.
        valid_BN: bool, True where a token is real; None if all are.

    Source: Sparse DETR, arXiv 2111.14330, appendix A.3, which leaves the scale open.
    """
    valid_BN = torch.ones_like(mass_BN, dtype=torch.bool) if valid_BN is None else valid_BN
    mass_BN = mass_BN.detach() * valid_BN
    target_BN = mass_BN / mass_BN.amax(dim=1, keepdim=True).clamp_min(1e-12)
    loss_BN = F.smooth_l1_loss(score_BN.sigmoid(), target_BN, reduction="none") * valid_BN
    return (loss_BN.sum(dim=1) / valid_BN.sum(dim=1).clamp_min(1)).mean()


def attention_ranking_loss(
    score_BN: Tensor, mass_BN: Tensor, valid_BN: Tensor | None, *, margin: float = 1.0
) -> Tensor:
    """Return the hinge loss of scores that should rank tokens as the decoder's attention does.

    Each real token is compared with a random one of its image: the score of the token with more
    attention should be greater by ``margin``.

    Args:
        score_BN: logits.
        mass_BN: the decoder's attention to each token.
        valid_BN: bool, True where a token is real; None if all are.
        margin: least wanted difference of the scores.

    Source: Sparse DETR, arXiv 2111.14330, appendix A.3, which leaves pairs and margin open.
    """
    losses = []
    for image, (score_N, mass_N) in enumerate(zip(score_BN, mass_BN.detach(), strict=True)):
        if valid_BN is not None:
            score_N, mass_N = score_N[valid_BN[image]], mass_N[valid_BN[image]]
        other_N = torch.randperm(len(score_N), device=score_N.device)
        sign_N = (mass_N - mass_N[other_N]).sign()
        short_N = (margin - sign_N * (score_N - score_N[other_N])).relu() * sign_N.abs()
        losses.append(short_N.sum() / sign_N.abs().sum().clamp_min(1))
    return torch.stack(losses).mean()
