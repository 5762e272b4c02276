"""Show progress: a bar on a terminal, else one line per tenth of the work."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

__all__ = ["Progress"]

_LINE = "{desc} {percentage:.0f}% ({n_fmt} of {total_fmt} {unit}) in {elapsed}{postfix}"
_SECONDS_WITHOUT_TOTAL = 10.0


class _Nowhere:
    """A file that discards what is written to it."""

    def write(self, text: str) -> int:
        """Discard the text and return its length."""
        return len(text)

    def flush(self) -> None:
        """Do nothing."""


class Progress(tqdm):
    """``tqdm`` that prints whole lines, fit for a log, if standard error is not a terminal.

    Args:
        arguments, options: as for ``tqdm``.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._in_lines = sys.stderr is None or not sys.stderr.isatty()
        self._shown: float = 0
        self._began = time.monotonic()
        if self._in_lines:
            options |= {"file": _Nowhere(), "bar_format": _LINE}
        super().__init__(*arguments, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Show the bar, or print a line if another tenth (or ten seconds) has passed."""
        if not self._in_lines:
            return super().display(msg, pos)
        if self.total:
            reached: float = 10 * self.n // self.total
        else:
            reached = (time.monotonic() - self._began) // _SECONDS_WITHOUT_TOTAL
        if reached > self._shown:
            self._shown = reached
            print(str(self), file=sys.stderr or _Nowhere(), flush=True)
        return True
