"""Which keys of a checkpoint match a model, and what may have become of the others."""

import re
from dataclasses import dataclass, field

from tabulate import tabulate

from tokendetr.checkpoint.key_names import Renaming, common_prefix, grouped_keys, shortened

__all__ = ["LoadReport"]

_CLASS_HEADS = re.compile(r"(^|\.)(class_embed|label_enc|label_embed|cls_score|enc_score)\b")


@dataclass
class LoadReport:
    """Comparison of a checkpoint's keys with a model's.

    Attributes:
        matched: keys with equal shapes in both.
        missing: keys of the model that the checkpoint lacks.
        unexpected: keys of the checkpoint that the model lacks.
        wrong_shape: (key, shape in the checkpoint, shape in the model).
        renamings: what missing keys may be called in the checkpoint.
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    renamings: list[Renaming] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """True if every key fits."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def take_class_heads(self) -> list[str]:
        """Remove and return the class heads that differ in the number of classes, if all else fits.

        The model keeps its own weights for them.
        """
        heads = [key for key, file, own in self.wrong_shape if _is_class_head(key, file, own)]
        others = self.missing or self.unexpected or len(heads) < len(self.wrong_shape)
        if others or not heads:
            return []
        self.wrong_shape = []
        return heads

    def table(self) -> str:
        """Return a table of the number of keys of each kind, with the first few.

        Below it: the prefix, or else the renamed parts, that separate keys of the file from the
        model's.
        """
        shapes = [
            f"{k}: {list(a)} in the file, {list(b)} in the model" for k, a, b in self.wrong_shape
        ]
        rows = [
            ("matched", len(self.matched), shortened(grouped_keys(self.matched))),
            ("missing in the file", len(self.missing), shortened(grouped_keys(self.missing))),
            (
                "unexpected in the file",
                len(self.unexpected),
                shortened(grouped_keys(self.unexpected)),
            ),
            ("wrong shape", len(shapes), shortened(shapes)),
        ]
        return tabulate(rows, headers=("keys", "number", "which"), tablefmt="pipe") + self._hint()

    def _hint(self) -> str:
        prefix, count = common_prefix(self.missing, self.unexpected)
        if not prefix:
            renamed = "; ".join(map(str, self.renamings))
            return f"\nPerhaps renamed: {renamed}" if renamed else ""
        rest = [key for key in self.unexpected if not key.startswith(prefix)] + self.matched
        others = f", which these keys lack: {shortened(grouped_keys(rest))}" if rest else ""
        return (
            f"\n{count} of {len(self.unexpected)} unexpected keys are missing ones behind the "
            f"prefix '{prefix}'{others}"
        )


def _is_class_head(key: str, file: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Return whether a tensor belongs to a class head and differs in its first dimension alone."""
    same_rest = len(file) == len(own) > 0 and file[1:] == own[1:]
    return same_rest and _CLASS_HEADS.search(key) is not None
