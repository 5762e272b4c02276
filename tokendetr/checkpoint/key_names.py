"""Compact display of state-dict keys, and what they have in common."""

import collections
from collections.abc import Collection, Sequence


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


def common_prefix(missing: Collection[str], unexpected: Sequence[str]) -> tuple[str, int]:
    """Return the prefix without which most unexpected keys are missing ones, and how many are.

    Args:
        missing: keys of the model that a file lacks.
        unexpected: keys of the file that the model lacks.

    Returns:
        the prefix with its dot, such as ``model.``, and the number of unexpected keys that it
        makes of missing ones; ("", 0) if none does it for at least half of them.
    """
    wanted = set(missing)
    found: collections.Counter[str] = collections.Counter()
    for key in unexpected:
        parts = key.split(".")
        for end in range(1, len(parts)):
            if ".".join(parts[end:]) in wanted:
                found[".".join(parts[:end]) + "."] += 1
    prefix, count = max(found.items(), key=lambda item: item[1], default=("", 0))
    return (prefix, count) if count * 2 >= len(unexpected) else ("", 0)
