"""Describe the error that ends a process of a run: what to print, and its exit code."""

import re
import signal
import sys
import traceback
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist

from tokendetr.errors import EXPECTED_ERRORS

__all__ = ["Failure"]

# Gloo's words, and NCCL's.
_TIMEOUT = re.compile(r"Timed out waiting \d+ms|collective operation timeout")


@dataclass(frozen=True)
class Failure:
    """The end of a process of a run.

    Attributes:
        rank: rank of the process.
        code: its exit code, which becomes the run's.
        text: what to print: one line for an expected error, else the traceback; "" for a requested
            stop.
        is_lost: the process was killed before it could report an error.
        is_consequence: the error may only follow from another process's end (a broken connection).
    """

    rank: int
    code: int
    text: str
    is_consequence: bool = False
    is_lost: bool = False

    @classmethod
    def of(cls, error: BaseException, rank: int) -> "Failure":
        """Describe an exception."""
        if isinstance(error, SystemExit):
            code = error.code
            if code is not None and not isinstance(code, int):
                return cls(rank, 1, str(code))
            if not (code or 0) & 0xFF:  # all that the system hands on: 256 would be a success
                text = f"error: rank {rank} left the run before its end (SystemExit: {code})"
                return cls(rank, 1, text)
            return cls(rank, code or 1, "")
        if isinstance(error, KeyboardInterrupt):
            return cls(rank, 128 + signal.SIGINT, "")
        if isinstance(error, EXPECTED_ERRORS):
            return cls(rank, 1, f"error: {error}")
        text = "".join(traceback.format_exception(error)).rstrip()
        if isinstance(error, RuntimeError) and _TIMEOUT.search(str(error)):
            text = (
                f"error: rank {rank} waited in vain for another process ({str(error).strip()}): it "
                "is stopped, hangs or is much slower; train.distributed.collective_timeout sets "
                "how many seconds processes wait"
            )
        return cls(rank, 1, text, _breaks_off(error))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for sending them to another process."""
        return asdict(self)

    def headline(self) -> str:
        """Return the last line of the text, which names the error."""
        return self.text.splitlines()[-1] if self.text else f"exit code {self.code}"

    def show(self) -> None:
        """Print the text for the user."""
        if self.text:
            print(self.text, file=sys.stderr, flush=True)


def _breaks_off(error: BaseException) -> bool:
    """Return whether a collective operation raises this error when another process is gone."""
    if isinstance(error, (dist.DistError, ConnectionError)):
        return True
    words = ("Connection closed by peer", "Connection reset", "gloo", "NCCL", "Broken pipe")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
