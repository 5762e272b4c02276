"""Selection of the tokens among which a block of SPT attends.

Shapes: B image, N tokens of a stage, P selected tokens of all images.
"""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

from spt_backbone.static_pack import StaticPack
from tokendetr.tokens import LevelLayout, Pack, chosen_tokens, select_tokens, window_order

LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class SelectionRule:
    """Rule that turns gate logits into a selection.

    Attributes:
        threshold: select tokens with a larger probability (with noise in training).
        evaluation_threshold: threshold in evaluation; None: ``threshold``.
        temperature: of the Gumbel-Softmax.
        keep_ratio: select this share, in [0, 1], of every image's tokens, those with the highest
            scores; None: select by threshold.

    Raises:
        ValueError: a number is out of range.

    Source: SPT, arXiv 2410.23608, section 3.2, equation 6 and appendix A.
    Differs: the two-class Gumbel-Softmax takes the logits, not their sigmoid.
    """

    threshold: float = 0.01
    evaluation_threshold: float | None = None
    temperature: float = 1.0
    keep_ratio: float | None = None

    def __post_init__(self) -> None:
        for name in ("threshold", "evaluation_threshold", "keep_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def probability(self, logit_BN: Tensor, *, training: bool) -> Tensor:
        """Return the probability that a token is selected, [B, N], with noise in training."""
        if training:
            uniform_BN = torch.rand_like(logit_BN).clamp_(1e-7, 1 - 1e-7)
            # The difference of two Gumbel variables has the logistic distribution.
            logit_BN = logit_BN + uniform_BN.logit()
        return (logit_BN / self.temperature).sigmoid()

    def mask(self, probability_BN: Tensor, layout: LevelLayout, *, training: bool) -> Tensor:
        """Return the selection, bool [B, N], never padding."""
        if self.keep_ratio is not None:
            counts = [ceil(self.keep_ratio * sum(levels)) for levels in layout.valid_counts]
            index_BK, valid_BK = select_tokens(probability_BN, counts, layout)
            return chosen_tokens(index_BK, valid_BK, layout.num_tokens)
        threshold = self.threshold
        if not training and self.evaluation_threshold is not None:
            threshold = self.evaluation_threshold
        return (probability_BN.detach() > threshold) & layout.valid_BN


def pack_selected(
    mask_BN: Tensor, layout: LevelLayout, *, window_size: int, shift: int, length: int
) -> Pack | StaticPack:
    """Pack the selected tokens of a stage window by window.

    Synchronizes with the device, since the number of selected tokens determines shapes. In exported
    and compiled graphs shapes do not depend on it (:class:`StaticPack`).

    Args:
        mask_BN: bool, the selected tokens.
        layout: of the stage, with one level.
        window_size: side of Swin's windows in tokens.
        shift: their cyclic shift in tokens.
        length: slots of a container.
    """
    order_BN = window_order(
        layout.level_shapes[0],
        [sizes[0] for sizes in layout.known_sizes or ()],
        window_size=window_size,
        shift=shift,
        device=mask_BN.device,
    )
    if torch.compiler.is_compiling():
        return StaticPack(mask_BN, order_BN, length)
    picked_BN = mask_BN.gather(1, order_BN)
    image_P, place_P = picked_BN.nonzero(as_tuple=True)
    index_P = order_BN[image_P, place_P] + image_P * layout.num_tokens
    return Pack(
        index_P=index_P,
        counts=picked_BN.sum(dim=1).tolist(),
        num_all=layout.num_tokens,
        length=length,
    )


def pool_scores(logit_BN: Tensor, layout: LevelLayout) -> Tensor:
    """Return, for each coarser token, the highest score among the 2 x 2 tokens that it covers.

    Args:
        logit_BN: scores of a scale.
        layout: of that scale; its padding is ignored.

    Returns:
        [B, ceil(H / 2) * ceil(W / 2)].
    """
    masked_BN = logit_BN.masked_fill(~layout.valid_BN, LOWEST)
    grid_BHW = masked_BN.unflatten(1, layout.level_shapes[0])
    return F.max_pool2d(grid_BHW[:, None], 2, ceil_mode=True).flatten(1)
