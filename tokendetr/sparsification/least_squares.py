"""Affine maps from an encoder's input to its memory, by ridge regression on streamed images.

Only sums of products are kept of the images, so any number of them needs the same memory, and the
error of any maps on held-back images follows from those images' sums.

Shapes: R rows, C channel, E = C + 1 (channels and a constant), L level (or another kind of token),
D predicted channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokendetr.encoder.bypass import AffineBypass
from tokendetr.sparsification.teacher import DensePass

__all__ = ["RIDGES", "NormalEquations", "relative_error", "solve"]

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Candidate penalties, relative to the mean square of a channel; the best on held-back images is
chosen."""
_ROWS_AT_ONCE = 8192


@dataclass
class NormalEquations:
    """Sums over tokens, float64.

    Attributes:
        input_LEE: X^T X of the maps' inputs X, with a 1 appended.
        moved: per layer X^T Y [L, E, D], with the targets Y: for an encoder, the difference of the
            layer's memory from the encoder's input (D = C).
        square: per layer the sums of squares of Y [L, D].
    """

    input_LEE: Tensor
    moved: Tensor
    square: Tensor

    @classmethod
    def empty(
        cls, *, num_layers: int, num_levels: int, embed_dim: int, outputs: int | None = None
    ) -> "NormalEquations":
        """Return the sums over no tokens; ``outputs`` is D, by default ``embed_dim``."""
        extended = embed_dim + 1
        outputs = embed_dim if outputs is None else outputs
        return cls(
            torch.zeros(num_levels, extended, extended, dtype=torch.float64),
            torch.zeros(num_layers, num_levels, extended, outputs, dtype=torch.float64),
            torch.zeros(num_layers, num_levels, outputs, dtype=torch.float64),
        )

    def add(self, dense: DensePass) -> None:
        """Add the real tokens of a batch."""
        layout = dense.layout
        for level, start in enumerate(layout.level_starts):
            span = slice(start, start + layout.level_sizes[level])
            valid_R = layout.valid_BN[:, span].flatten()
            input_RC = dense.input_BNC[:, span].flatten(0, 1)[valid_R]
            moved = [memory[:, span].flatten(0, 1)[valid_R] for memory in dense.memories]
            self.add_rows(level, input_RC, [memory_RC.double() - input_RC for memory_RC in moved])

    def add_rows(self, level: int, input_RC: Tensor, targets: Sequence[Tensor]) -> None:
        """Add tokens of one level, with the target [R, D] of each layer's map."""
        for first in range(0, len(input_RC), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            x_RC = input_RC[rows].double()
            x_RE = torch.cat([x_RC, x_RC.new_ones(len(x_RC), 1)], dim=1)
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


def solve(equations: NormalEquations, held_back: NormalEquations) -> Tensor:
    """Return maps [layers, L, E, C], with each level's best penalty on held-back images.

    A level without tokens keeps the identity (zeros).
    """
    maps = torch.zeros_like(equations.moved)
    extended = equations.input_LEE.shape[-1]
    penalty_E = torch.ones(extended, dtype=torch.float64)
    penalty_E[-1] = 0  # the constant is not penalized
    for level, products_EE in enumerate(equations.input_LEE):
        if equations.tokens(level) == 0:
            continue
        scale = products_EE.diagonal()[:-1].mean().clamp_min(1e-12)
        candidates = []
        for ridge in RIDGES:
            system_EE = products_EE + torch.diag(ridge * scale * penalty_E)
            found = torch.linalg.solve(system_EE, equations.moved[:, level])
            error = sum(
                float(_error(found[layer], held_back, layer, level).sum())
                for layer in range(len(found))
            )
            candidates.append((error, found))
        maps[:, level] = min(candidates, key=lambda candidate: candidate[0])[1]
    return maps


def _error(maps_EC: Tensor, sums: NormalEquations, layer: int, level: int) -> Tensor:
    """Return the squared error of a map per channel, summed over the tokens of ``sums``."""
    linear_C = (maps_EC * sums.moved[layer, level]).sum(dim=0)
    quadratic_C = (maps_EC * (sums.input_LEE[level] @ maps_EC)).sum(dim=0)
    return sums.square[layer, level] - 2 * linear_C + quadratic_C


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


@torch.no_grad()
def write(maps: Tensor, bypass: AffineBypass) -> None:
    """Write maps [layers, L, E, C] into a bypass."""
    bypass.weight.copy_(maps[:, :, :-1].transpose(-1, -2))
    bypass.bias.copy_(maps[:, :, -1])
