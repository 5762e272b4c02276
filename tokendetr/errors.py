"""Typed errors that the library raises; every message names what is wrong and what to do."""

from collections.abc import Iterable

UPSTREAM = ("detectron2", "detrex")
"""Packages that this one extends; neither is on PyPI."""


def upstream_missing(name: str) -> str:
    """Return the message for a package of :data:`UPSTREAM` that is not installed."""
    return (
        f"{name} is not installed. Install it from its sources, or this project's stand-ins: "
        "pip install ./standalone (tokendetr-standalone)"
    )


def check_choice(
    name: str, value: object, choices: Iterable[object], *, error: type[Exception] = ValueError
) -> None:
    """Check that an argument has one of the values that it may have.

    Args:
        name: of the argument.
        value: of the argument.
        choices: the values that it may have.
        error: raised otherwise, with a message that lists them.
    """
    known = tuple(choices)
    if value not in known:
        raise error(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def check_share(name: str, value: object, *, zero: bool = False) -> float:
    """Return a share as a float, after a check that it is a number in (0, 1].

    Args:
        name: of the argument.
        value: of the argument.
        zero: whether 0 is a share as well.

    Raises:
        ValueError: the value is out of range, or no number.
    """
    try:
        share = float("nan") if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):  # several numbers, or none
        share = float("nan")
    if not (0 < share <= 1 or (zero and share == 0)):
        raise ValueError(f"{name} must lie in {'[' if zero else '('}0, 1], got {value!r}")
    return share


class ConfigError(ValueError):
    """A config file or an override that cannot be used; the message says which and what to do."""


class UnsupportedDetectorError(RuntimeError):
    """The detector that owns an encoder lacks a module that the encoder's sparsifier needs."""


class NotSparsifiableError(ConfigError):
    """A detector cannot be made sparse, or has no sparsifier; the message says what it lacks."""


class TooSlowError(RuntimeError):
    """A detector exceeds a time limit even at the smallest keep ratio."""


class FewImagesError(ValueError):
    """There are too few readable images to fit to some and hold others back."""


class StaleFitError(ValueError):
    """A folder holds an unfinished fit with other weights, images or options, or a damaged one."""


class NonFiniteLossError(FloatingPointError):
    """A loss or a gradient is infinite or NaN; the weights are those from before the step."""


class SampleError(RuntimeError):
    """A record could not be turned into a sample; the message names its file and image id.

    PyTorch re-raises the error of a worker process with the worker's traceback as its message; only
    the original message is kept.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught SampleError"):
            message = message.rstrip().rpartition("SampleError: ")[2]
        super().__init__(message)


class LoaderError(RuntimeError):
    """A data-loading worker exited or was killed; the message says how to continue."""


class DatasetError(ValueError):
    """A data set that cannot be used; the message names file and records and what to do."""


class InputError(ValueError):
    """A batch that a model cannot take; the message names the record."""


class CheckpointWriteError(OSError):
    """A file could not be written; the one that was there before is unchanged."""


class CutOffVideoError(OSError):
    """A video ends long before the frames that it announces; raised after those it has."""


class OutputError(OSError):
    """An output cannot be written, or would overwrite an input or another output."""


class CheckpointError(ValueError):
    """A file that is damaged or is not a checkpoint; the message names it."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint holds more than weights and plain values; nothing in it was executed."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint does not fit the model; the message lists the keys."""


class ExportError(ValueError):
    """A model cannot be exported as asked; the message says why and what to do."""


class ExportCheckError(RuntimeError):
    """An exported model's outputs differ from the model's; the message says by how much."""


class RunFolderError(ValueError):
    """An output folder that this run must not write to; the message says what to do."""


class RendezvousError(RuntimeError):
    """The processes of a distributed run could not connect."""


EXPECTED_ERRORS = (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointWriteError,
    ConfigError,
    DatasetError,
    ExportCheckError,
    ExportError,
    FewImagesError,
    FileNotFoundError,
    InputError,
    IsADirectoryError,
    LoaderError,
    NonFiniteLossError,
    NotADirectoryError,
    OutputError,
    PermissionError,
    RendezvousError,
    RunFolderError,
    SampleError,
    StaleFitError,
    TooSlowError,
    UnsafeCheckpointError,
    UnsupportedDetectorError,
)
"""Errors whose message is complete: programs print it without a traceback."""
