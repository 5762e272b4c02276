"""``functools.cached_property`` as it is from Python 3.12 on: without a lock.

The lock of earlier releases ends the graph of ``torch.compile`` wherever such a property is read
first. Two threads may compute a value twice; both get one of two equal values.
"""

import sys
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

__all__ = ["cached_property"]

if sys.version_info >= (3, 12):
    from functools import cached_property
else:
    Value = TypeVar("Value")

    class cached_property(Generic[Value]):
        """A method of no arguments that is called once per object, and read as an attribute."""

        def __init__(self, function: Callable[[Any], Value]) -> None:
            self.function = function
            self.__doc__ = function.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self.name = name

        @overload
        def __get__(self, instance: None, owner: type) -> "cached_property[Value]": ...
        @overload
        def __get__(self, instance: object, owner: type) -> Value: ...
        def __get__(self, instance: object | None, owner: type) -> "Value | cached_property[Value]":
            if instance is None:
                return self
            value = self.function(instance)
            instance.__dict__[self.name] = value  # found before this descriptor from now on
            return value
