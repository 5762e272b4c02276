"""Per-image budgets: easy images keep fewer tokens, hard ones more, at the same mean.

Shapes: B image, N all tokens, S step.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["MassBudget"]

_STEPS = 20
_TRIED = 4001
"""Shares of the mass that calibration tries."""


class MassBudget(nn.Module):
    """Keeps the fewest tokens of an image that hold all but a share of its score mass.

    An image's mass is the sum of its scores' sigmoids; if few tokens carry it, few are kept. The
    share to leave out at a given mean keep ratio is calibrated (:meth:`calibrate`) for ratios that
    are multiples of 1 / 20 and interpolated between them; uncalibrated, it is 1 - ratio.

    Attributes:
        left_S: share of the mass that is left out at keep ratio s / 20, from 1 to 0; a buffer.
            Shares left out, not kept, since float32 resolves small numbers best.
    """

    left_S: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("left_S", torch.linspace(1, 0, _STEPS + 1))

    def left(self, ratio: float) -> float:
        """Return the share of the mass that is left out at a keep ratio in [0, 1]."""
        step = min(int(ratio * _STEPS), _STEPS - 1)
        low, high = self.left_S[step : step + 2].tolist()
        return float(low + (high - low) * (ratio * _STEPS - step))

    def counts(
        self,
        score_BN: Tensor,
        ratio: float,
        *,
        valid_BN: Tensor | None,
        valid_counts: Sequence[int],
    ) -> list[int]:
        """Return how many tokens each image keeps.

        Args:
            score_BN: logits.
            ratio: mean share of tokens that images keep, in (0, 1]; at 1 all are kept.
            valid_BN: bool, True = real; None if all are. Padding has no mass.
            valid_counts: real tokens of each image.

        Returns:
            Numbers from 1 to the image's real tokens.
        """
        if ratio == 1:
            return list(valid_counts)
        mass_BN = _mass(score_BN)
        if valid_BN is not None:
            mass_BN = mass_BN.masked_fill(~valid_BN, 0.0)
        out_BN = mass_BN.sort(dim=1).values.cumsum(dim=1)
        left_B = (out_BN <= self.left(ratio) * out_BN[:, -1:]).sum(dim=1)
        kept = (score_BN.shape[1] - left_B).tolist()
        return [min(max(count, 1), real) for count, real in zip(kept, valid_counts, strict=True)]

    @torch.no_grad()
    def calibrate(self, scores: Sequence[Tensor]) -> None:
        """Calibrate the shares so that images keep, on average, their keep ratio of tokens.

        Args:
            scores: logits of each image's real tokens, one dimension each.

        Raises:
            ValueError: there are no scores.
        """
        if not scores:
            raise ValueError("a budget is calibrated on the scores of at least one image")
        tried_T = torch.logspace(-12, 0, _TRIED, dtype=torch.float64)
        out_T = torch.zeros_like(tried_T)
        for score_N in scores:
            out_N = _mass(score_N.cpu()).sort().values.cumsum(dim=0)
            out_T += torch.searchsorted(out_N, tried_T * out_N[-1], right=True)
        out_T /= sum(len(score_N) for score_N in scores)
        wanted_S = torch.linspace(1, 0, _STEPS + 1, dtype=torch.float64)
        upper_S = torch.searchsorted(out_T, wanted_S).clamp(1, _TRIED - 1)
        low_S, high_S = out_T[upper_S - 1], out_T[upper_S]
        part_S = ((wanted_S - low_S) / (high_S - low_S).clamp_min(1e-12)).clamp(0, 1)
        found_S = tried_T[upper_S - 1].lerp(tried_T[upper_S], part_S)
        found_S[0], found_S[-1] = 1, 0
        self.left_S.copy_(found_S)


def _mass(score: Tensor) -> Tensor:
    """Return sigmoids in float64: sums of an image hardly depend on their order or its padding."""
    return score.detach().double().nan_to_num(nan=-torch.inf).sigmoid()
