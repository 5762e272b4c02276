"""Config helpers: put a method into a detector's lazy config with one line."""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, open_dict

SUPERVISED = "tokendetr.supervision.build_supervised"
ENCODER = "tokendetr.encoder.TokenEncoder"


def sparsify(model: DictConfig, sparsifier: DictConfig) -> DictConfig:
    """Let the encoder of a detector's config work on fewer tokens.

    ``model.transformer.encoder`` keeps its arguments and gets ``sparsifier``; the model keeps its
    class and arguments and becomes supervised, so that the sparsifier may ask for losses. Only
    targets are swapped: every override path (``model.transformer.encoder.num_layers=...``) stays as
    it was.

    Args:
        model: node of a detector whose encoder is at ``transformer.encoder``; changed in place.
        sparsifier: node of a :class:`tokendetr.encoder.TokenSparsifier`.

    Returns:
        ``model``.

    Raises:
        KeyError: where the model has no such encoder.
    """
    encoder = model.get("transformer", {}).get("encoder")
    if not isinstance(encoder, DictConfig) or "_target_" not in encoder:
        raise KeyError(
            "sparsify() needs a model config with the node transformer.encoder; "
            f"this one ({target_name(model.get('_target_'))}) has none"
        )
    with open_dict(model):
        encoder["_target_"] = ENCODER
        encoder["sparsifier"] = sparsifier
        supervised(model)
    return model


def supervised(model: DictConfig) -> DictConfig:
    """Make a config build a supervised model (:mod:`tokendetr.supervision`), in place."""
    target = target_name(model.get("_target_"))
    if target != SUPERVISED:
        with open_dict(model):
            model["supervised_class"] = target
            model["_target_"] = SUPERVISED
    return model


def target_name(target: str | Callable[..., Any] | None) -> str:
    """Return the dotted name of a config node's target, which may be a name already."""
    if target is None:
        raise KeyError("a model config needs a _target_")
    return target if isinstance(target, str) else f"{target.__module__}.{target.__qualname__}"
