"""Compact display of state-dict keys."""

from collections.abc import Sequence


def grouped_keys(keys: Sequence[str]) -> list[str]:
    """Merge keys that differ in one dotted part into one: ``blocks.{0,1}.gate.{weight,bias}``.

    The first part is never merged.
    """
    groups: list[tuple[str, ...]] = [tuple(key.split(".")) for key in keys]
    for place in reversed(range(1, max(map(len, groups), default=0))):
        merged: dict[tuple[str, ...], list[str]] = {}
        for parts in groups:
            own = parts[place] if place < len(parts) else ""
            rest = (*parts[:place], *parts[place + 1 :], str(len(parts)))
            merged.setdefault(rest, []).append(own)
        groups = []
        for (*rest_parts, _), values in merged.items():
            joined = values[0] if len(values) == 1 else "{" + ",".join(values) + "}"
            middle = (joined,) if joined else ()
            groups.append((*rest_parts[:place], *middle, *rest_parts[place:]))
    return [".".join(parts) for parts in groups]
