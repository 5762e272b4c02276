"""The keep ratio of a built detector."""

from torch import nn

from tokendetr.encoder.sparsifier import TokenSparsifier
from tokendetr.errors import NotSparsifiableError

__all__ = ["find_sparsifier", "set_keep_ratio"]


def find_sparsifier(detector: nn.Module) -> TokenSparsifier:
    """Return the sparsifier of a detector's encoder.

    Raises:
        NotSparsifiableError: the detector has none.
    """
    encoder = getattr(getattr(detector, "transformer", None), "encoder", None)
    sparsifier = getattr(encoder, "sparsifier", None)
    if not isinstance(sparsifier, TokenSparsifier):
        raise NotSparsifiableError(
            f"the encoder of {type(detector).__name__} has no sparsifier, so it has no keep ratio: "
            "choose a config with one, such as those of Sparse DETR, or make the detector sparse "
            "(tokendetr sparsify)"
        )
    return sparsifier


def set_keep_ratio(detector: nn.Module, ratio: float) -> None:
    """Set the share of tokens that the encoder of a detector updates.

    Args:
        detector: a detector whose encoder has a sparsifier with a keep ratio.
        ratio: at most 1, which is the dense encoder.

    Raises:
        NotSparsifiableError: the detector has no such sparsifier.
        ValueError: the ratio is out of range, or the sparsifier was given a ratio for each layer.
    """
    find_sparsifier(detector).set_keep_ratio(ratio)
