"""Name the part of a config that cannot be built, or is of another kind than its place needs.

A target of a config may be any class or function. One of the wrong kind would fail in the first
step, or after an epoch, as an error about an attribute that some other object lacks.
"""

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from tokendetr.errors import EXPECTED_ERRORS, ConfigError

__all__ = ["built_from", "require_methods"]


@contextlib.contextmanager
def built_from(key: str) -> Iterator[None]:
    """Turn errors of the ``with`` block, which builds a part of the config, into config errors.

    Args:
        key: the part, for messages.

    Raises:
        ConfigError: a constructor refused a value; the message names the part.
    """
    try:
        yield
    except EXPECTED_ERRORS:
        raise
    except (
        AssertionError,
        ImportError,
        OmegaConfBaseException,
        TypeError,
        ValueError,
    ) as error:
        if not str(error):  # an assertion without a message is useless without its traceback
            raise
        raise ConfigError(f"{key} cannot be built from the config: {_reason(error)}") from error
    except (AttributeError, LookupError, RuntimeError) as error:  # of little use without a place
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{(str(error) or repr(error)).splitlines()[0]} ({frame.filename}:{frame.lineno})"
        raise ConfigError(f"{key} cannot be built from the config: {reason}") from error


def _reason(error: Exception) -> str:
    """Return the first line of a message, with the lines that it announces."""
    first, *rest = str(error).splitlines()
    return "\n".join([first, *rest[:20]]) if first.endswith(":") else first


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
