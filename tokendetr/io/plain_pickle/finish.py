"""Plain data from what the stack machine leaves on its stack."""

from typing import Any

from .values import MARK, ArrayShell, Damaged, Name, NumericType, Refused

__all__ = ["Finisher"]

_MAX_DEPTH = 64


class Finisher:
    """Replace the descriptions of arrays by the arrays, and bound the depth of nesting.

    The memo lets a pickle use one container in many places. Each is finished once, and its height
    is kept, so that the depth of every use is known without visiting it again: a chain of shared
    lists would take exponential time otherwise.
    """

    def __init__(self) -> None:
        # id -> (original, which keeps the id in use; result; height)
        self.done: dict[int, tuple[Any, Any, int]] = {}

    def finish(self, value: Any) -> Any:
        """Return the plain data for the result of a :class:`Machine`."""
        return self._visit(value, 0)[0]

    def _visit(self, value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, ArrayShell):
            if value.value is None:
                raise Damaged("an array without contents")
            return value.value, 0
        if isinstance(value, (Name, NumericType)):
            raise Refused(f"{value} as a value")
        if value is MARK:
            raise Damaged("a mark as a value")
        if not isinstance(value, (dict, list, tuple)):
            return value, 0
        if id(value) not in self.done:
            if depth > _MAX_DEPTH:
                raise Damaged(f"data nested more than {_MAX_DEPTH} deep, or recursive")
            children = value.values() if isinstance(value, dict) else value
            visited = [self._visit(child, depth + 1) for child in children]
            results = [result for result, _ in visited]
            height = 1 + max((height for _, height in visited), default=0)
            finished: Any = (
                dict(zip(value, results, strict=True))
                if isinstance(value, dict)
                else type(value)(results)
            )
            self.done[id(value)] = (value, finished, height)
        _, finished, height = self.done[id(value)]
        if depth + height > _MAX_DEPTH:
            raise Damaged(f"data nested more than {_MAX_DEPTH} deep, or recursive")
        return finished, height
