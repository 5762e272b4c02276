"""Learning rates by parameter name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping


def scale_by_name(factors: Mapping[str, float]) -> Callable[[str], float]:
    """Return a ``lr_factor_func`` for detectron2, so that a config needs no lambda.

    Args:
        factors: learning-rate factor for each fragment of a module's name. The first fragment that
            occurs in a name decides; names with none get factor 1.
    """

    def factor_of(name: str) -> float:
        return next((factor for fragment, factor in factors.items() if fragment in name), 1.0)

    return factor_of


def decay_by_depth(rate: float, depth: int) -> Callable[[str], float]:
    """Return a ``lr_factor_func`` with layer-wise decay for a plain vision transformer.

    Args:
        rate: factor from one block to the one before it.
        depth: blocks of the backbone. Patch and position embeddings decay as a block before the
            first would; everything outside the blocks, including the detector, gets factor 1.
    """

    def factor_of(name: str) -> float:
        if not name.startswith("backbone"):
            return 1.0
        block = re.search(r"\.blocks\.(\d+)\.", name)
        if ".pos_embed" in name or ".patch_embed" in name:
            return float(rate ** (depth + 1))
        if block is None or ".residual." in name:
            return 1.0
        return float(rate ** (depth - int(block[1])))

    return factor_of
