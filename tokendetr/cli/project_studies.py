"""Load the studies and comparisons that a project defines."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from tokendetr.errors import ConfigError

__all__ = ["from_project"]


def from_project(project: str, kind: str, kinds: str, only: Sequence[str] | None) -> list[Any]:
    """Return what ``projects.<project>.<kinds>.<kinds>()`` yields.

    Args:
        project: folder under projects/.
        kind: ``study`` or ``comparison``, for messages.
        kinds: its plural, the name of the module and of its function.
        only: names of the requested ones; None for all.

    Raises:
        ConfigError: the project has none, or none of a requested name.
    """
    try:
        module = importlib.import_module(f"projects.{project}.{kinds}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"projects/{project} has no {kinds}.py ({error})") from error
    found = {one.name: one for one in getattr(module, kinds)()}
    unknown = sorted(set(only or ()) - set(found))
    if unknown:
        raise ConfigError(f"there is no {kind} {unknown}; projects/{project} has {sorted(found)}")
    return [one for name, one in found.items() if not only or name in only]
