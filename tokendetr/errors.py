"""Typed errors that the library raises; every message names what is wrong and what to do."""

UPSTREAM = ("detectron2", "detrex")
"""Packages that this one extends; neither is on the package index."""


def upstream_missing(name: str) -> str:
    """Return what to do about a package of :data:`UPSTREAM` that is not installed."""
    return (
        f"{name} is not installed. Install it from its sources, or this project's stand-ins: "
        "pip install ./standalone (tokendetr-standalone)"
    )


class ConfigError(ValueError):
    """A config file or an override that cannot be used; the message says which and what to do."""


class UnsupportedDetectorError(RuntimeError):
    """The detector that owns an encoder lacks a module that the encoder's sparsifier needs."""


class NotSparsifiableError(ConfigError):
    """A detector cannot be made sparse, or is not; the message says what it lacks."""


class NonFiniteLossError(FloatingPointError):
    """A loss or a gradient is infinite or NaN; the weights are those before the step."""


class SampleError(RuntimeError):
    """A record could not be turned into a sample; the message names its file and image id.

    Raised in a loader process it arrives wrapped in that process's traceback, which says nothing
    more than the message: only that is kept.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught SampleError"):
            message = message.rstrip().rpartition("SampleError: ")[2]
        super().__init__(message)


class LoaderError(RuntimeError):
    """A loader process ended by itself or was killed; the message says how to go on."""


class DatasetError(ValueError):
    """A data set that cannot be used; the message names file and records and what to do."""


class CheckpointWriteError(OSError):
    """A file could not be written; what was there before is unchanged."""


class OutputError(OSError):
    """A file that a tool is asked to write would be lost or cannot be written."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: damaged, or no checkpoint. The message names the file."""


class UnsafeCheckpointError(CheckpointError):
    """A file holds more than weights and plain values; nothing of it was executed."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint does not fit the model; the message lists the keys."""


class ExportError(ValueError):
    """A model cannot be exported as asked; the message says why and what to do."""


class ExportCheckError(RuntimeError):
    """An exported model does not compute what the model computes; the message says how far off."""


class RunFolderError(ValueError):
    """An output folder that this run must not use; the message says what to do."""


class RendezvousError(RuntimeError):
    """The processes of a run did not find each other."""


EXPECTED_ERRORS = (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointWriteError,
    ConfigError,
    DatasetError,
    ExportCheckError,
    ExportError,
    FileNotFoundError,
    UnsupportedDetectorError,
    LoaderError,
    NonFiniteLossError,
    RendezvousError,
    RunFolderError,
    SampleError,
    UnsafeCheckpointError,
)
"""Errors whose message says it all: programs show it without a traceback."""
