"""What Sparse DETR trains its scores and its encoder on.

Shapes: B image, N all tokens, K kept tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tokendetr.tokens import topk_valid


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
