"""Check that the targets a config names exist, before anything is built."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf

from tokendetr.errors import ConfigError

SOURCES = {
    "detectron2": "https://github.com/facebookresearch/detectron2",
    "detrex": "https://github.com/IDEA-Research/detrex",
}


def check_targets(node: DictConfig) -> None:
    """Import every ``_target_`` that is given by name.

    Raises:
        ConfigError: a target cannot be imported; the message names its key and what to install.
    """
    for key, target in _names(node, ""):
        try:
            locate(target)
        except (ImportError, ValueError) as error:  # hydra refuses relative names
            needs = source_of(target) or f"{target.split('.')[0]}: {error}"
            raise ConfigError(
                f"{key} is {target}, which cannot be imported: this config needs {needs}"
            ) from error


def parameters_of(node: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a ``LazyCall`` node's target by name; none if unknown."""
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if target is None:
        return {}
    try:
        return inspect.signature(locate(target) if isinstance(target, str) else target).parameters
    except (ImportError, TypeError, ValueError):
        return {}


def source_of(module: str) -> str:
    """Return what has a module of detectron2 or detrex that is not there, and where to get it.

    Empty for other packages' modules.
    """
    package = module.split(".")[0]
    if package == "projects":
        return f"detrex's own projects; run it at the root of a checkout of {SOURCES['detrex']}"
    if package in SOURCES:
        return f"{package} itself, which has it; install it from {SOURCES[package]}"
    return ""


def _names(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, DictConfig):
        for key in list[Any](node):
            if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
                continue
            if key == "_target_" and isinstance(node[key], str):
                yield prefix.rstrip("."), node[key]
            yield from _names(node[key], f"{prefix}{key}.")
    elif isinstance(node, ListConfig):
        for index, item in enumerate(node):
            yield from _names(item, f"{prefix}{index}.")
