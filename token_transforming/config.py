"""Config helper: transform a detector's backbone with one line."""

import inspect
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from token_transforming.transforming import transform
from tokendetr.config import all_or_nothing
from tokendetr.config.wrap import build_wrapped, target_name, wrap_target


@all_or_nothing
def transform_backbone(model: DictConfig, **options: Any) -> DictConfig:
    """Transform the backbone of a detector's config.

    ``model.backbone`` keeps its arguments and override paths and gets ``token_transform`` with the
    given options and ``recovery``, which can be overridden too
    (``model.backbone.token_transform.keep_ratio=0.6``).

    Args:
        model: node of a model with a ``backbone``; changed in place.
        **options: arguments of :func:`token_transforming.transform`.

    Returns:
        ``model``.

    Raises:
        KeyError: the model has no backbone.
        TypeError: an option that :func:`token_transforming.transform` does not have.
    """
    inspect.signature(transform).bind(None, **options)
    backbone = model.get("backbone")
    if not isinstance(backbone, DictConfig) or "_target_" not in backbone:
        raise KeyError(
            "transform_backbone() needs a model config with the node backbone; "
            f"this one ({target_name(model.get('_target_'))}) has none"
        )
    wrap_target(backbone, build_transformed)
    with open_dict(backbone):
        backbone["token_transform"] = {"recovery": "paper", **options}
    return model


def build_transformed(
    *, wrapped_target: str, token_transform: Mapping[str, Any], **kwargs: Any
) -> nn.Module:
    """Build a model and transform it; the target of such a config.

    Args:
        wrapped_target: dotted name of the model's class or builder.
        token_transform: arguments of :func:`token_transforming.transform`.
        **kwargs: the model's own arguments.
    """
    options: Any = token_transform
    if isinstance(options, DictConfig):
        options = OmegaConf.to_container(options, resolve=True)
    built: nn.Module = build_wrapped(wrapped_target, **kwargs)
    transform(built, **options)
    return built
