"""Learning rates by parameter name."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def scale_by_name(factors: Mapping[str, float]) -> Callable[[str], float]:
    """A ``lr_factor_func`` for detectron2's optimiser parameters, without a lambda in the config.

    Args:
        factors: for each fragment of a module's name, the factor of the learning rate; the first
            fragment that occurs in a name decides, and names without any keep factor 1.
    """

    def factor_of(name: str) -> float:
        return next((factor for fragment, factor in factors.items() if fragment in name), 1.0)

    return factor_of
