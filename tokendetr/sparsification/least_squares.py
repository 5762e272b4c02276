"""Affine maps of tokens by ridge regression on streamed images.

Only sums of products are kept of the images, so any number of them needs the same memory, and the
error of any maps on held-back images follows from those images' sums.

Shapes: R rows, I input channel, E = I + 1 (inputs and a constant), L level (or another kind of
token), D predicted channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["RIDGES", "NormalEquations", "Solution", "relative_error", "ridge_regression", "solve"]

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Candidate penalties, relative to the mean square of a channel; the best on held-back images is
chosen."""
_ROWS_AT_ONCE = 8192


@dataclass
class NormalEquations:
    """Sums over tokens, float64.

    Attributes:
        input_LEE: X^T X of the maps' inputs X, with a 1 appended.
        moved: per layer X^T Y [L, E, D], with the targets Y.
        square: per layer the sums of squares of Y [L, D].
    """

    input_LEE: Tensor
    moved: Tensor
    square: Tensor

    @classmethod
    def empty(
        cls, *, num_layers: int, num_levels: int, inputs: int, outputs: int
    ) -> "NormalEquations":
        """Return the sums over no tokens, of maps from I to D channels."""
        extended = inputs + 1
        return cls(
            torch.zeros(num_levels, extended, extended, dtype=torch.float64),
            torch.zeros(num_layers, num_levels, extended, outputs, dtype=torch.float64),
            torch.zeros(num_layers, num_levels, outputs, dtype=torch.float64),
        )

    def add_rows(self, level: int, input_RI: Tensor, targets: Sequence[Tensor]) -> None:
        """Add tokens of one level, with the target [R, D] of each layer's map."""
        for first in range(0, len(input_RI), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            x_RI = input_RI[rows].double()
            x_RE = torch.cat([x_RI, x_RI.new_ones(len(x_RI), 1)], dim=1)
            self.input_LEE[level] += (x_RE.T @ x_RE).cpu()
            for layer, target_RD in enumerate(targets):
                step_RD = target_RD[rows].double()
                self.moved[layer, level] += (x_RE.T @ step_RD).cpu()
                self.square[layer, level] += step_RD.square().sum(dim=0).cpu()

    def tokens(self, level: int) -> float:
        """Return the number of tokens added to a level."""
        return float(self.input_LEE[level, -1, -1])

    def state(self) -> dict[str, Tensor]:
        """Return the sums by name."""
        return {"input_LEE": self.input_LEE, "moved": self.moved, "square": self.square}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "NormalEquations":
        """Return the sums that :meth:`state` gave."""
        return cls(state["input_LEE"], state["moved"], state["square"])


class Solution(NamedTuple):
    """Maps, and the penalties that they were found with.

    Attributes:
        maps: [layers, L, E, D], float64; zeros on a level without tokens.
        penalty_L: the square of a map's input weights times it is added to the squared error;
            float64, 0 on a level without tokens.
    """

    maps: Tensor
    penalty_L: Tensor


def solve(equations: NormalEquations, held_back: NormalEquations) -> Solution:
    """Return maps with each level's best penalty on held-back images."""
    maps = torch.zeros_like(equations.moved)
    penalty_L = torch.zeros(len(equations.input_LEE), dtype=torch.float64)
    for level, products_EE in enumerate(equations.input_LEE):
        if equations.tokens(level) == 0:
            continue
        scale = products_EE.diagonal()[:-1].mean().clamp_min(1e-12)
        candidates = []
        for ridge in RIDGES:
            found = ridge_regression(products_EE, equations.moved[:, level], ridge * scale)
            error = sum(
                float(_error(found[layer], held_back, layer, level).sum())
                for layer in range(len(found))
            )
            candidates.append((error, found, ridge * scale))
        _, maps[:, level], penalty_L[level] = min(candidates, key=lambda candidate: candidate[0])
    return Solution(maps, penalty_L)


def ridge_regression(products_EE: Tensor, moved: Tensor, penalty: Tensor) -> Tensor:
    """Return maps [..., E, D] by sums of products; the constant, last, is not penalized."""
    penalty_E = penalty.expand(len(products_EE)).clone()
    penalty_E[-1] = 0
    return torch.linalg.solve(products_EE + torch.diag(penalty_E), moved)


def _error(maps_ED: Tensor, sums: NormalEquations, layer: int, level: int) -> Tensor:
    """Return the squared error of a map per channel, summed over the tokens of ``sums``."""
    linear_D = (maps_ED * sums.moved[layer, level]).sum(dim=0)
    quadratic_D = (maps_ED * (sums.input_LEE[level] @ maps_ED)).sum(dim=0)
    return sums.square[layer, level] - 2 * linear_D + quadratic_D


def relative_error(maps: Tensor, sums: NormalEquations) -> float:
    """Return the share of the tokens' squared change that maps do not explain.

    It is over all layers and levels; 1 for maps of zeros.
    """
    layers, levels = sums.square.shape[:2]
    error = sum(
        float(_error(maps[layer, level], sums, layer, level).sum())
        for layer in range(layers)
        for level in range(levels)
    )
    return error / max(float(sums.square.sum()), 1e-12)
