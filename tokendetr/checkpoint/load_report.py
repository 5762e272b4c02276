"""Which tensors of a checkpoint match a model, and what may have become of the others."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tabulate import tabulate
from torch import Tensor

from tokendetr.checkpoint.key_names import (
    Renaming,
    common_prefix,
    grouped_keys,
    likely_renamings,
    shortened,
)
from tokendetr.checkpoint.safetensors import alias_groups
from tokendetr.checkpoint.shape_advice import WrongShape, is_class_head, shape_advice

__all__ = ["LoadReport", "Shapes", "compared"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class LoadReport:
    """Comparison of a checkpoint's tensors with a model's.

    A tensor with several names (a shared head) counts once, under the first of them.

    Attributes:
        matched: tensors with equal shapes in both.
        missing: tensors of the model that the checkpoint lacks.
        unexpected: tensors of the checkpoint that the model lacks.
        wrong_shape: (name, shape in the checkpoint, shape in the model).
        renamings: what missing tensors may be called in the checkpoint.
        prefix: prefix that separates unexpected names from missing ones, and the number of names
            that it explains; ("", 0) if there is none.
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[WrongShape] = field(default_factory=list)
    renamings: list[Renaming] = field(default_factory=list)
    prefix: tuple[str, int] = ("", 0)

    @property
    def is_complete(self) -> bool:
        """True if every tensor fits."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    @property
    def not_loaded(self) -> list[str]:
        """Names of the model's tensors that the file does not set: missing or of another shape."""
        return [*self.missing, *(name for name, _, _ in self.wrong_shape)]

    def take_class_heads(self) -> list[str]:
        """Remove and return the class heads that differ in the number of classes, if all else fits.

        The model keeps its own weights for them.
        """
        heads = [entry[0] for entry in self.wrong_shape if is_class_head(entry)]
        others = self.missing or self.unexpected or len(heads) < len(self.wrong_shape)
        if others or not heads:
            return []
        self.wrong_shape = []
        return heads

    def counts(self) -> str:
        """Return the numbers of tensors that do not fit, as part of a sentence."""
        return (
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected, "
            f"{len(self.wrong_shape)} of another shape"
        )

    def table(self) -> str:
        """Return a table of the number of tensors of each kind, with the first few.

        Below it: what explains names and shapes that differ.
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
        table = tabulate(rows, headers=("tensors", "number", "which"), tablefmt="pipe")
        return "\n".join([table, *self._name_advice(), *shape_advice(self.wrong_shape)])

    def _name_advice(self) -> list[str]:
        prefix, count = self.prefix
        if not prefix:
            renamed = "; ".join(map(str, self.renamings))
            return [f"Perhaps renamed: {renamed}"] if renamed else []
        rest = [key for key in self.unexpected if not key.startswith(prefix)] + self.matched
        others = f", which these keys lack: {shortened(grouped_keys(rest))}" if rest else ""
        keys = "key is a missing one" if count == 1 else "keys are missing ones"
        return [f"{count} unexpected {keys} behind the prefix '{prefix}'{others}"]


def compared(
    model_state: Mapping[str, Tensor],
    file_shapes: Shapes,
    *,
    absent: Collection[str] | None = None,
    unexpected: Collection[str] | None = None,
    repeated: Collection[str] = (),
) -> LoadReport:
    """Compare a file's tensors with a model's.

    Args:
        model_state: the model's state dict.
        file_shapes: shapes in the file by name, under the model's names if names were converted.
        absent: names of the model that the file does not set; None for those that it lacks or has
            in another shape.
        unexpected: names of the file that the model lacks; None to find them.
        repeated: further names of tensors that the file has under several names.

    Returns:
        The report. Counters of batch norms may be absent, since old versions of torch did not save
        them.
    """
    own = {name: tuple(value.shape) for name, value in model_state.items()}
    if absent is None:
        absent = {name for name in own if file_shapes.get(name) != own[name]}
    if unexpected is None:
        unexpected = [name for name in file_shapes if name not in own]
    groups = {names[0]: names for names in alias_groups(model_state)}
    others = {name for names in groups.values() for name in names[1:]}
    report = LoadReport(unexpected=[name for name in unexpected if name not in repeated])
    lost: list[str] = []
    for first in own:
        is_absent_counter = first.endswith("num_batches_tracked") and first not in file_shapes
        if first in others or is_absent_counter:
            continue
        names = groups.get(first, [first])
        wrong = [name for name in names if file_shapes.get(name, own[name]) != own[name]]
        if wrong:
            report.wrong_shape.append((wrong[0], file_shapes[wrong[0]], own[wrong[0]]))
        elif any(name not in absent for name in names):
            report.matched.append(first)
        else:
            report.missing.append(first)
            lost += names
    _find_behind_prefixes(report, file_shapes, own)
    report.renamings = likely_renamings(
        {name: own[name] for name in lost},
        {name: file_shapes[name] for name in unexpected if name in file_shapes},
    )
    report.prefix = common_prefix(lost, list(unexpected))
    return report


def _find_behind_prefixes(report: LoadReport, file: Shapes, own: Shapes) -> None:
    """Move to ``wrong_shape`` what is missing only because of its shape in the file of a part.

    Files of a part of a model have names without the part's prefix. Of such a name one missing
    tensor may be meant, otherwise it says nothing.
    """
    for name in list(report.unexpected):
        meant = [key for key in report.missing if key.endswith(f".{name}")]
        if len(meant) == 1 and file.get(name, own[meant[0]]) != own[meant[0]]:
            report.missing.remove(meant[0])
            report.unexpected.remove(name)
            report.wrong_shape.append((meant[0], file[name], own[meant[0]]))
