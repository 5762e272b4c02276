"""Warn if a config builds classes of another package that is named ``projects``."""

import logging
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from tokendetr.config.files import PROJECTS_DIR

logger = logging.getLogger(__name__)


def warn_of_foreign_projects(cfg: Any) -> None:
    """Warn once, in one line, if a config builds classes of a foreign ``projects`` package.

    This project's configs name classes of ``tokendetr``. Upstream's configs import them from
    ``projects``, which is a detrex clone's if one is on the path.
    """
    foreign: dict[str, str] = {}
    for target in _targets(cfg):
        module = sys.modules.get(_module_of(target))
        file = getattr(module, "__file__", None)
        if file and PROJECTS_DIR not in Path(file).resolve().parents:
            foreign.setdefault(target, file)
    if foreign:
        names = sorted(foreign)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        _warn(f"this config builds {names[0]}{more} of {foreign[names[0]]}, not of tokendetr")


@cache
def _warn(message: str) -> None:
    logger.warning(message)


def _module_of(target: str) -> str:
    """Return the imported module of a target below ``projects``, "" for other targets."""
    parts = target.split(".")
    if parts[0] != "projects":
        return ""
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in sys.modules), "")


def _targets(node: Any) -> Iterator[str]:
    """Yield the dotted names of all targets of a config."""
    if isinstance(node, DictConfig):
        yield from map(_name, (node[key] for key in ("_target_", "wrapped_target") if key in node))
        keys: list[Any] = [key for key in node if not OmegaConf.is_missing(node, key)]
    elif isinstance(node, ListConfig):
        keys = list(range(len(node)))
    else:
        return
    for key in keys:
        yield from _targets(node._get_node(key))


def _name(target: Any) -> str:
    if isinstance(target, str):
        return target
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
