"""What a project offers to a program: its studies and its comparisons, by name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from tokendetr.errors import ConfigError

__all__ = ["offered"]


def offered(project: str, kind: str, kinds: str, only: Sequence[str] | None) -> list[Any]:
    """Return what ``projects.<project>.<kinds>.<kinds>()`` yields.

    Args:
        project: folder under projects/.
        kind: what one of them is called, for messages.
        kinds: name of the module and of its function.
        only: names of those that are wanted; all without.

    Raises:
        ConfigError: where the project has none, or none of a name that was asked for.
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
