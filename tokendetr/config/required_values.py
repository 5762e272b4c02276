"""Refuse overrides that leave a part of a config without a value that its owner needs."""

import inspect
import re
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from tokendetr.config.targets import parameters_of
from tokendetr.errors import ConfigError

__all__ = ["check_required"]

_NO_VALUE = inspect.Parameter.empty
# Null in the config: the trainer sets them.
_PASSED_LATER = ("optimizer.params.model",)


def check_required(cfg: Any, key: str, before: object, override: str) -> None:
    """Check that a key may be null, or absent, at the end of all overrides.

    Args:
        cfg: the config after the overrides.
        key: a dotted key that had a value before them.
        before: that value.
        override: the override that set it to null or deleted it, for the message.

    Raises:
        ConfigError: it has no value, and its owner needs one.
    """
    parent_key, _, name = key.rpartition(".")
    owner = OmegaConf.select(cfg, parent_key, default=None) if parent_key else cfg
    if isinstance(owner, ListConfig):
        if int(name) < len(owner) and owner[int(name)] is None and not override.startswith("~"):
            raise ConfigError(
                f"{override}: an entry of a list cannot be null: remove it with ~{key}"
            )
        return
    if not isinstance(owner, DictConfig) or key in _PASSED_LATER:
        return
    if name == "_target_" and name not in owner:
        raise ConfigError(
            f"{override}: _target_ names the class that {parent_key} builds; it cannot be deleted"
        )
    if OmegaConf.is_missing(owner, name) or owner.get(name, None) is not None:
        return
    parameter = parameters_of(owner).get(name)
    if parameter is None:
        return
    has_default = parameter.default is not _NO_VALUE
    if (name not in owner and has_default) or (name in owner and _may_be_null(parameter, before)):
        return
    target: Any = owner.get("_target_")
    needs = getattr(target, "__name__", str(target).rpartition(".")[2])
    raise ConfigError(f"{override}: {needs} needs a value for {name!r}; leave it as it is")


def _may_be_null(parameter: inspect.Parameter, before: object) -> bool:
    """Return whether a parameter takes None, as far as its default and annotation say.

    Much of detectron2 and detrex has neither. Their parameters then take None in place of a config
    node or a list, such as augmentations, but not in place of a number or a name.
    """
    if parameter.default is None:
        return True
    if parameter.annotation is _NO_VALUE:
        return parameter.default is not _NO_VALUE or isinstance(before, (DictConfig, ListConfig))
    # As text, since an annotation may be a string, and its names need not be importable.
    annotation = str(parameter.annotation)
    is_any = annotation in ("Any", "typing.Any", "object", "<class 'object'>")
    return is_any or re.search(r"\b(None|Optional)\b", annotation) is not None
