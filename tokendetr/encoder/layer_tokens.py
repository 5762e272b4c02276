"""Per-token view of a recorded layer: kept, merged or skipped."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokendetr.encoder.trace import ForwardTrace
from tokendetr.tokens import Identity, LevelLayout, Merge, TokenMap

__all__ = ["KEPT", "MERGED", "SKIPPED", "LayerTokens", "describe", "layer_tokens", "worth_drawing"]

SKIPPED, KEPT, MERGED = 0, 1, 2


@dataclass(frozen=True)
class LayerTokens:
    """State of the tokens of one image in one layer.

    Attributes:
        state_N: uint8 [N]: ``SKIPPED``, ``KEPT`` (a query of its own) or ``MERGED``.
        query_N: long [N], the reduced token that represents each token; -1 if none does.
        anchor_N: bool [N], True for tokens whose position a query has.
    """

    state_N: NDArray[np.uint8]
    query_N: NDArray[np.int64]
    anchor_N: NDArray[np.bool_]


def layer_tokens(token_map: TokenMap, layout: LevelLayout, image: int = 0) -> LayerTokens:
    """Convert a token map to the state of each token of one image."""
    valid_BN = layout.valid_BN
    anchor_BK, valid_BK = token_map.anchor_BK, token_map.valid_BK
    number_BK = torch.arange(token_map.num_tokens).expand(valid_BN.shape[0], -1)
    if valid_BK is not None:
        number_BK = number_BK.masked_fill(~valid_BK.cpu(), -1)
    query_BN = torch.full(valid_BN.shape, -1)
    query_BN = (
        number_BK.clone() if anchor_BK is None else query_BN.scatter(1, anchor_BK.cpu(), number_BK)
    )
    anchor_N = query_BN[image] >= 0
    query_N = query_BN[image]
    size_N = anchor_N.long()
    if isinstance(token_map, Merge):
        query_N = token_map.cluster_BN()[image].cpu()
        sizes_K = token_map.size_BK()[image].cpu().long()
        size_N = torch.where(query_N >= 0, sizes_K[query_N.clamp_min(0)], 0)
    state_N = torch.where(query_N < 0, SKIPPED, torch.where(size_N > 1, MERGED, KEPT))
    state_N = state_N.masked_fill(~valid_BN[image].cpu(), SKIPPED)
    return LayerTokens(_array(state_N.byte()), _array(query_N), _array(anchor_N))


def _array(tensor: Tensor) -> NDArray:
    array: NDArray = tensor.numpy()
    return array


def describe(forward: ForwardTrace, image: int = 0) -> list[dict[str, object]]:
    """Count tokens, queries, and tokens kept, merged and skipped, per layer and level."""
    layout = forward.layout
    valid = layout.valid_counts[image]
    report: list[dict[str, object]] = []
    for number, layer in enumerate(forward.layers, start=1):
        tokens = layer_tokens(layer.token_map, layout, image)
        levels = []
        for level, (start, size) in enumerate(
            zip(layout.level_starts, layout.level_sizes, strict=True)
        ):
            span = slice(start, start + size)
            counts = np.bincount(tokens.state_N[span], minlength=3)
            skipped = int(counts[SKIPPED]) - (size - valid[level])
            levels.append(
                {
                    "tokens": valid[level],
                    "queries": int(tokens.anchor_N[span].sum()),
                    "kept": int(counts[KEPT]),
                    "merged": int(counts[MERGED]),
                    "skipped": skipped,
                }
            )
        queries = int(tokens.anchor_N.sum())
        report.append({"layer": number, "tokens": sum(valid), "queries": queries, "levels": levels})
    return report


def worth_drawing(forwards: Sequence[ForwardTrace]) -> list[ForwardTrace]:
    """Return the last pass of each name; dense ones only if all are dense."""
    latest = list({forward.name: forward for forward in forwards}.values())
    chosen = [
        forward
        for forward in latest
        if any(not isinstance(layer.token_map, Identity) for layer in forward.layers)
    ]
    return chosen or latest
