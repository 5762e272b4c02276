"""Compact display of state-dict keys, and what separates a file's keys from a model's."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Renaming", "common_prefix", "grouped_keys", "likely_renamings", "shortened"]

_SHOWN = 6
_SHOWN_CHARACTERS = 120

# Bounds of the search for renamed parts: parts that are reported, candidates that are tried for
# each, and keys that suggest candidates.
_MOST_RENAMINGS = 3
_MOST_CANDIDATES = 64
_MOST_EXAMPLES = 16


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
    found: Counter[str] = Counter()
    for key in unexpected:
        parts = key.split(".")
        for end in range(1, len(parts)):
            if ".".join(parts[end:]) in wanted:
                found[".".join(parts[:end]) + "."] += 1
    prefix, count = max(found.items(), key=lambda item: item[1], default=("", 0))
    return (prefix, count) if count * 2 >= len(unexpected) else ("", 0)


def shortened(names: Sequence[str]) -> str:
    """Join the first few names, and say how many more there are."""
    shown: list[str] = []
    for name in names[:_SHOWN]:
        if shown and sum(map(len, shown)) + len(name) > _SHOWN_CHARACTERS:
            break
        middle = _SHOWN_CHARACTERS // 2 - 2
        is_long = len(name) > _SHOWN_CHARACTERS
        shown.append(f"{name[:middle]} ... {name[-middle:]}" if is_long else name)
    more = f", and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more


@dataclass(frozen=True)
class Renaming:
    """A part of names that differs between a file and a model.

    Attributes:
        in_file: dotted part of the file's keys.
        in_model: what stands in its place in the model's; "" if nothing does.
        count: keys of the file that it explains.
    """

    in_file: str
    in_model: str
    count: int

    def __str__(self) -> str:
        model = f"'{self.in_model}'" if self.in_model else "left out"
        keys = "1 key" if self.count == 1 else f"{self.count} keys"
        return f"'{self.in_file}' in the file is {model} in the model ({keys})"


def likely_renamings(
    missing: Mapping[str, tuple[int, ...]], unexpected: Mapping[str, tuple[int, ...]]
) -> list[Renaming]:
    """Return renamed parts that make missing keys of unexpected ones, with the same shapes.

    The part that explains most keys comes first, and each key counts once. Parts that explain less
    than a tenth of the keys are left out: among many keys a few fit by chance.

    Args:
        missing: keys of the model that a file lacks, with their shapes.
        unexpected: keys of the file that the model lacks, with their shapes.
    """
    wanted, left = dict(missing), dict(unexpected)
    least = min(len(wanted), len(left)) / 10
    found: list[Renaming] = []
    while wanted and left and len(found) < _MOST_RENAMINGS:
        best: dict[str, str] = {}
        parts = ("", "")
        for candidate in _candidates(wanted, left):
            renamed = {key: _replaced(key, *candidate) for key in left}
            fits = {k: new for k, new in renamed.items() if wanted.get(new) == left[k]}
            if len(fits) > len(best):
                best, parts = fits, candidate
        if not best or len(best) < least:
            break
        found.append(Renaming(*parts, len(best)))
        for key, new in best.items():
            del left[key]
            wanted.pop(new, None)
    return found


def _candidates(
    missing: Mapping[str, tuple[int, ...]], unexpected: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, str]]:
    """Return the parts in which most of a few unexpected keys differ from missing ones."""
    alike = defaultdict(list)
    for key, shape in missing.items():
        alike[shape, key.rpartition(".")[2]].append(key)
    keys = list(unexpected)
    examples = keys[:: -(-len(keys) // _MOST_EXAMPLES)]
    found: Counter[tuple[str, str]] = Counter()
    for key in examples:
        others = alike[unexpected[key], key.rpartition(".")[2]]
        found.update({_difference(key, other) for other in others})
    ranked = sorted(found, key=lambda pair: (-found[pair], len(pair[0]) + len(pair[1]), pair))
    return ranked[:_MOST_CANDIDATES]


def _difference(key: str, other: str) -> tuple[str, str]:
    """Return the dotted parts of two keys between what they have in common at both ends.

    The first is never empty: a part that only the other key has is returned with its neighbor.
    """
    ours, theirs = key.split("."), other.split(".")
    start, end = 0, 0
    shorter = min(len(ours), len(theirs))
    while start < shorter - 1 and ours[start] == theirs[start]:
        start += 1
    while end < shorter - start and ours[-1 - end] == theirs[-1 - end]:
        end += 1
    if len(ours) == start + end:
        if start:
            start -= 1
        else:
            end -= 1
    return ".".join(ours[start : len(ours) - end]), ".".join(theirs[start : len(theirs) - end])


def _replaced(key: str, part: str, other: str) -> str:
    """Return a key with one dotted part, the first of its kind, replaced by another."""
    inserted = f".{other}." if other else "."
    return f".{key}.".replace(f".{part}.", inserted, 1).strip(".")
