"""Names of files to write: none over an input, no two of one name."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokendetr.errors import ConfigError

__all__ = ["output_paths", "refuse_overwriting"]


def output_paths(inputs: Sequence[Path], folder: Path, ending: str) -> list[Path]:
    """A file in ``folder`` for every input, named after it.

    Inputs of one stem (``a/x.png``, ``b/x.png``, ``x.jpg``) get ``x.jpg``, ``x_2.jpg`` and
    ``x_3.jpg``, in their order.

    Args:
        inputs: files that are read.
        folder: that is written to.
        ending: of the names, behind the stem: ``.jpg``, ``_tokens.png``.

    Raises:
        ConfigError: a file to be written is one of the inputs.
    """
    taken: set[str] = set()
    targets = []
    for path in inputs:
        name, number = path.stem, 1
        while name.lower() in taken:  # file systems that know no capital letters exist
            number += 1
            name = f"{path.stem}_{number}"
        taken.add(name.lower())
        targets.append(folder / f"{name}{ending}")
    refuse_overwriting(inputs, targets)
    return targets


def refuse_overwriting(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Check that no output is an input, under whatever name.

    Raises:
        ConfigError: naming the file.
    """
    read = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in read:
            raise ConfigError(
                f"{path} is an input and would be written over: choose another output"
            )
