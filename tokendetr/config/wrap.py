"""Wrap the object that a config node builds, without moving its arguments and override paths."""

from collections.abc import Callable
from typing import Any

from detectron2.utils.registry import locate
from omegaconf import DictConfig, open_dict
from omegaconf.errors import UnsupportedValueType
from torch import nn

from tokendetr.encoder.forward_context import observe
from tokendetr.encoder.pixel_decoder import sparsify_pixel_decoder
from tokendetr.encoder.sparsifier import TokenSparsifier

__all__ = [
    "build_observed",
    "build_with_pixel_decoder",
    "build_wrapped",
    "set_target",
    "target_name",
    "wrap_target",
]

Target = str | Callable[..., Any]


def target_name(target: Target | None) -> str:
    """Return the dotted name of a config node's target, given by name or as an object."""
    if target is None:
        raise KeyError("a config node needs a _target_")
    return target if isinstance(target, str) else f"{target.__module__}.{target.__qualname__}"


def set_target(node: DictConfig, target: Target) -> None:
    """Make a config node call another target, in place.

    The node holds the target itself, as ``LazyCall`` nodes do: detectron2's ``LazyConfig.to_py``
    fails on names. Where a node takes no objects, it holds the name.

    Args:
        node: of the call.
        target: a class or function, or its dotted name.

    Raises:
        ImportError: there is no target of that name.
    """
    found = locate(target) if isinstance(target, str) else target
    with open_dict(node):
        try:
            node["_target_"] = found
        except UnsupportedValueType:
            node["_target_"] = target_name(found)


def wrap_target(node: DictConfig, wrapper: Target) -> bool:
    """Make a config node call a wrapper, which gets the target as ``wrapped_target``, in place.

    Args:
        node: with ``_target_``.
        wrapper: called with ``wrapped_target``, a name, and the node's arguments.

    Returns:
        Whether the node changed; a node that has this wrapper already does not.
    """
    target = target_name(node.get("_target_"))
    if _located(node["_target_"]) is _located(wrapper):
        return False
    with open_dict(node):
        node["wrapped_target"] = target
    set_target(node, wrapper)
    return True


def _located(target: Target) -> Target:
    """Return the object of a dotted name, or the name of one that is not installed."""
    try:
        return locate(target) if isinstance(target, str) else target
    except ImportError:
        return target


def build_wrapped(wrapped_target: Target, /, **kwargs: Any) -> Any:
    """Build the object of a wrapped node.

    Args:
        wrapped_target: a class or function, or its dotted name.
        **kwargs: its arguments.

    Raises:
        ImportError: there is no target of that name.
    """
    build = wrapped_target
    if isinstance(build, str):
        try:
            build = locate(build)
        except (ImportError, AttributeError, ValueError) as error:
            raise ImportError(f"cannot find {wrapped_target!r}: {error}") from error
    return build(**kwargs)


def build_observed(*, wrapped_target: Target, **kwargs: Any) -> nn.Module:
    """Build a detector whose submodules may add losses: the wrapper of ``sparsify``.

    Args:
        wrapped_target: the detector's class, or its dotted name.
        **kwargs: its arguments.

    Raises:
        UnsupportedDetectorError: the detector lacks what its encoder's sparsifier needs.
    """
    return observe(build_wrapped(wrapped_target, **kwargs))


def build_with_pixel_decoder(
    *, wrapped_target: Target, sparsifier: TokenSparsifier, **kwargs: Any
) -> nn.Module:
    """Build a model and add a sparsifier to its pixel decoder's encoder.

    Args:
        wrapped_target: the model's class, or its dotted name.
        sparsifier: decides which tokens the encoder processes.
        **kwargs: the model's arguments.

    Raises:
        UnsupportedDetectorError: see :func:`tokendetr.encoder.sparsify_pixel_decoder`.
    """
    return sparsify_pixel_decoder(build_wrapped(wrapped_target, **kwargs), sparsifier)
