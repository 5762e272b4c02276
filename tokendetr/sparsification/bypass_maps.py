"""The maps of an affine bypass by least squares, from passes of the dense detector.

Without context, each map is a ridge regression of its own. With context, all layers share what a
token takes in from its surroundings. The problem is then linear in the maps for a given context,
and in the context for given maps: the two are solved in turn, starting from the separate
regressions. All that is needed of the images are the sums of one regression.

Shapes: B image, R rows, C channel, S = 2 C (surroundings; 0 without context), E = C + S + 1 (token,
    surroundings and a constant), X = C + 1 (entry and a constant), L level.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tokendetr.encoder.bypass import AffineBypass
from tokendetr.encoder.surroundings import spread, surroundings
from tokendetr.sparsification.least_squares import NormalEquations, ridge_regression, solve
from tokendetr.sparsification.teacher import DensePass

__all__ = ["BypassMaps", "add_pass", "empty_sums", "fit_maps"]

_ROUNDS = 8


def empty_sums(bypass: AffineBypass) -> NormalEquations:
    """Return the sums over no images that a bypass's maps are fitted to."""
    parts = 1 if bypass.context_weight is None else 3
    return NormalEquations.empty(
        num_layers=bypass.num_layers,
        num_levels=bypass.num_levels,
        inputs=parts * bypass.embed_dim,
        outputs=bypass.embed_dim,
    )


def add_pass(sums: NormalEquations, dense: DensePass) -> None:
    """Add the real tokens of a batch: their movement from the encoder's input, layer by layer."""
    layout = dense.layout
    levels = layout.split(dense.input_BNC)
    context = sums.input_LEE.shape[-1] - 1 - dense.input_BNC.shape[-1]
    for level, (x_BNC, valid_BN) in enumerate(
        zip(levels, layout.split(layout.valid_BN), strict=True)
    ):
        inputs_BNE = x_BNC
        if context:
            around_BNS = x_BNC.new_zeros(*x_BNC.shape[:2], context)
            if level + 1 < layout.num_levels:
                around_BNS = spread(layout, level, surroundings(layout, level, dense.input_BNC))
            inputs_BNE = torch.cat([x_BNC, around_BNS], dim=-1)
        memories = [layout.split(memory_BNC)[level] for memory_BNC in dense.memories]
        moved = [(memory_BNC.double() - x_BNC)[valid_BN] for memory_BNC in memories]
        sums.add_rows(level, inputs_BNE[valid_BN], moved)


@dataclass(frozen=True)
class BypassMaps:
    """Fitted maps, float64.

    Attributes:
        maps: of entries and a constant, to their movement [layers, L, C + 1, C].
        context_LSC: what a token takes in from its surroundings [L, S, C].
    """

    maps: Tensor
    context_LSC: Tensor

    def of_inputs(self) -> Tensor:
        """Return the same as maps of the sums' inputs [layers, L, E, C]."""
        own, constant = self.maps[:, :, :-1], self.maps[:, :, -1:]
        around = self.context_LSC + self.context_LSC @ own
        return torch.cat([own, around, constant], dim=2)

    @torch.no_grad()
    def write(self, bypass: AffineBypass) -> None:
        """Write the maps into a bypass."""
        bypass.weight.copy_(self.maps[:, :, :-1].transpose(-1, -2))
        bypass.bias.copy_(self.maps[:, :, -1])
        if bypass.context_weight is not None:
            bypass.context_weight.copy_(self.context_LSC[:-1].transpose(-1, -2))


def fit_maps(fitted: NormalEquations, held_back: NormalEquations) -> BypassMaps:
    """Return the maps that fit some images, with penalties chosen on others.

    A level without tokens keeps the identity.
    """
    alone, penalty_L = solve(fitted, held_back)
    channels = alone.shape[-1]
    around = alone.shape[-2] - 1 - channels
    context_LSC = alone.new_zeros(alone.shape[1], around, channels)
    if not around:
        return BypassMaps(alone, context_LSC)
    maps = alone.new_zeros(*alone.shape[:2], channels + 1, channels)
    for level in range(alone.shape[1]):
        if fitted.tokens(level):
            maps[:, level], context_LSC[level] = _share_context(
                alone[:, level],
                fitted.input_LEE[level],
                fitted.moved[:, level],
                penalty_L[level],
            )
    return BypassMaps(maps, context_LSC)


def _share_context(
    alone: Tensor, products_EE: Tensor, moved: Tensor, penalty: Tensor
) -> tuple[Tensor, Tensor]:
    """Return one level's maps [layers, C + 1, C] of entries, and their context [S, C].

    A token x with surroundings s moves to m, so that m = e + e W + b for the entry e = x + s V. The
    maps W, b of a layer are a regression of m - e on e and a constant. The context V solves the
    normal equations S^T S V G = sum over layers of S^T (m - x - x W - b) (1 + W)^T, with G the sum
    of (1 + W) (1 + W)^T.

    Args:
        alone: each layer's own regression [layers, E, C] on x, s and a constant.
        products_EE: X^T X of these inputs X.
        moved: X^T (m - x) [layers, E, C].
        penalty: of squared weights.
    """
    channels = alone.shape[-1]
    own, around = slice(0, channels), slice(channels, len(products_EE) - 1)
    identity_CC = torch.eye(channels, dtype=alone.dtype)
    damped_SS = products_EE[around, around].clone()
    damped_SS.diagonal().add_(penalty)
    context_SC = _over_layers(alone[:, around], alone[:, own] + identity_CC)
    for _ in range(_ROUNDS):
        maps = _entry_maps(context_SC, products_EE, moved, penalty)
        own_rows = torch.cat([products_EE[around, own], products_EE[around, -1:]], dim=1)
        missing = moved[:, around] - own_rows @ maps
        right_SC = _over_layers(missing, maps[:, :-1] + identity_CC)
        context_SC = torch.linalg.solve(damped_SS, right_SC)
    return _entry_maps(context_SC, products_EE, moved, penalty), context_SC


def _entry_maps(context_SC: Tensor, products_EE: Tensor, moved: Tensor, penalty: Tensor) -> Tensor:
    """Return the regressions of each layer [layers, C + 1, C] on entries of a given context."""
    around_size, channels = context_SC.shape
    own, around = slice(0, channels), slice(channels, channels + around_size)
    entry_EX = context_SC.new_zeros(len(products_EE), channels + 1)
    entry_EX[own, :-1] = torch.eye(channels, dtype=context_SC.dtype)
    entry_EX[around, :-1] = context_SC
    entry_EX[-1, -1] = 1.0
    return ridge_regression(
        entry_EX.T @ products_EE @ entry_EX,
        entry_EX.T @ (moved - products_EE[:, around] @ context_SC),
        penalty,
    )


def _over_layers(right: Tensor, steps: Tensor) -> Tensor:
    """Return the sum of each layer's [S, C] times its step's transpose, times the inverse of G."""
    gram_CC = torch.einsum("lab,lcb->ac", steps, steps)
    sum_SC = torch.einsum("lsb,lcb->sc", right, steps)
    return torch.linalg.solve(gram_CC, sum_SC.T).T
