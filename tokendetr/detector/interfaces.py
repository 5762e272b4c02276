"""What a detector asks of the modules that a config gives it.

Any class can stand in a config. One of another interface would fail in the first forward pass, as
an error about a value that some inner function got.

Shapes: B image, C channel, H, W height and width of a level.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tokendetr.errors import ConfigError

__all__ = ["check_callable", "check_module", "pyramid_levels"]


def check_module(
    key: str, part: object, *arguments: str, keywords: Sequence[str] = (), numbers: Sequence[str]
) -> None:
    """Check that a part of a model is a module of the kind that its place needs.

    Args:
        key: of the config, for the message.
        part: what was built.
        *arguments: names of the arguments that its forward gets by position.
        keywords: names of those that it gets by name.
        numbers: its attributes, integers or truth values, that others read.

    Raises:
        ConfigError: it is not a module, has another call, or lacks a number.
    """
    if not isinstance(part, nn.Module):
        raise ConfigError(f"{key} is a {type(part).__name__}, not a torch.nn.Module")
    check_callable(key, part, *arguments, keywords=keywords)
    for name in numbers:
        if not isinstance(getattr(part, name, None), int):
            raise ConfigError(f"{key} is a {type(part).__name__}, which has no {name}")


def check_callable(key: str, part: object, *arguments: str, keywords: Sequence[str] = ()) -> None:
    """Check that a part of a model can be called with some arguments, and maybe further ones.

    Args:
        key: of the config, for the message.
        part: what was built: a module or another callable.
        *arguments: names of the arguments by position.
        keywords: names of those by name.

    Raises:
        ConfigError: it cannot; the message says why.
    """
    call: Any = part.forward if isinstance(part, nn.Module) else part
    if not callable(call):
        raise ConfigError(f"{key} is a {type(part).__name__}, which cannot be called")
    try:
        signature = inspect.signature(call)
    except ValueError:  # of a compiled function
        return
    try:
        signature.bind_partial(*arguments, **dict.fromkeys(keywords))
    except TypeError as error:
        words = ", ".join([*arguments, *(f"{name}=" for name in keywords)])
        raise ConfigError(
            f"{key} is a {type(part).__name__}, which cannot be called as ({words}): {error}"
        ) from error


def pyramid_levels(
    backbone: Callable[[Tensor], Any], neck: Callable[[Any], Any], images_B3HW: Tensor
) -> list[Tensor]:
    """Return the levels [B, C, H, W] that backbone and neck make of images, finest first.

    Raises:
        ConfigError: the backbone gives no dict of features, or the neck no list of levels.
    """
    features = backbone(images_B3HW)
    if not isinstance(features, Mapping):
        raise ConfigError(
            f"model.backbone is a {type(backbone).__name__} and gives a {type(features).__name__}: "
            "a detector needs a dict of features by name, as detectron2's backbones give"
        )
    levels = neck(features)
    is_list = isinstance(levels, (list, tuple))
    if not is_list or not all(isinstance(level, Tensor) and level.dim() == 4 for level in levels):
        raise ConfigError(
            f"model.neck is a {type(neck).__name__} and gives a {type(levels).__name__}: a "
            "detector needs a list of levels [B, C, H, W], as detrex's ChannelMapper gives"
        )
    return list(levels)
