"""Refuse parts of a config that are of another kind than their place needs.

A target of a config may be any class or function. One of the wrong kind would fail in the first
step, or after an epoch, as an error about an attribute that some other object lacks.
"""

from typing import Any

from tokendetr.errors import ConfigError

__all__ = ["require_methods"]


def require_methods(key: str, part: Any, what: str, *methods: str) -> None:
    """Refuse an object that a config builds unless it has the methods of its kind.

    Args:
        key: of the config, for the message.
        part: the object.
        what: its kind, with an article, for the message.
        methods: names of the methods.

    Raises:
        ConfigError: one is missing.
    """
    missing = [name for name in methods if not callable(getattr(part, name, None))]
    if missing:
        raise ConfigError(
            f"{key} is a {type(part).__name__}, not {what}: it has no method {missing[0]}"
        )
