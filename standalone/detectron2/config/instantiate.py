"""Build the object that a config node describes."""

import logging
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from detectron2.utils.registry import _convert_target_to_string, locate
from omegaconf import DictConfig, ListConfig, OmegaConf

__all__ = ["dump_dataclass", "instantiate"]

_SPECIAL_KEYS = ("_target_", "_recursive_")


def dump_dataclass(obj: Any) -> dict[str, Any]:
    """Turn a dataclass instance into a dict that :func:`instantiate` builds again.

    Args:
        obj: an instance of a dataclass; fields may hold dataclasses, or lists and tuples of them.

    Returns:
        A dict with ``_target_`` and one entry for each field.
    """
    assert is_dataclass(obj) and not isinstance(obj, type), (
        f"dump_dataclass() takes an instance of a dataclass, not {obj!r}."
    )
    dumped: dict[str, Any] = {"_target_": _convert_target_to_string(type(obj))}
    for name in obj.__dataclass_fields__:
        value = getattr(obj, name)
        if is_dataclass(value):
            value = dump_dataclass(value)
        if isinstance(value, (list, tuple)):
            value = [dump_dataclass(item) if is_dataclass(item) else item for item in value]
        dumped[name] = value
    return dumped


def _node_path(cfg: Any) -> str:
    """Return the dotted path of a node in its config, or '' without a config."""
    if not isinstance(cfg, (DictConfig, ListConfig)):
        return ""
    return str(cfg._get_full_key(None) or "")


def _resolve_target(target: Any, path: str) -> tuple[Any, str]:
    """Return the callable of a ``_target_`` entry together with a name for messages."""
    if isinstance(target, str):
        name, target = target, locate(target)
        assert target is not None, name
    else:
        module = getattr(target, "__module__", None)
        name = f"{module}.{target.__qualname__}" if hasattr(target, "__qualname__") else str(target)
    if not callable(target):
        raise AssertionError(f"_target_ {target!r} of node '{path}' does not define a valid object")
    return target, name


def instantiate(cfg: Any) -> Any:
    """Recursively build the objects that nodes with a ``_target_`` describe.

    Args:
        cfg: a node with a ``_target_`` (a callable, or its dotted name) whose other keys are the
            keyword arguments; or a list of such nodes. ``_recursive_: False`` passes nested nodes
            on without building them.

    Returns:
        The object, or the list of objects; anything else is returned unchanged.

    Raises:
        TypeError: the arguments do not fit the target; the log names the target and its node.
    """
    if isinstance(cfg, ListConfig):
        return ListConfig([instantiate(item) for item in cfg], flags={"allow_objects": True})
    if isinstance(cfg, list):
        return [instantiate(item) for item in cfg]
    if isinstance(cfg, DictConfig) and is_dataclass(cfg._metadata.object_type):
        return OmegaConf.to_object(cfg)
    if not (isinstance(cfg, Mapping) and "_target_" in cfg):
        return cfg

    path = _node_path(cfg)
    recursive = cfg.get("_recursive_", True)
    kwargs = {str(k): instantiate(v) if recursive else v for k, v in cfg.items()}
    target, name = _resolve_target(instantiate(kwargs["_target_"]), path)
    for key in _SPECIAL_KEYS:
        kwargs.pop(key, None)
    try:
        return target(**kwargs)
    except TypeError:
        where = f" (config node '{path}')" if path else ""
        logging.getLogger(__name__).error(f"Could not build {name}{where}")
        raise
