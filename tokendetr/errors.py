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


class HostError(RuntimeError):
    """The detector around an encoder lacks what the encoder's sparsifier needs."""


class NonFiniteLossError(FloatingPointError):
    """A loss or a gradient is infinite or NaN; the weights are those before the step."""


class SampleError(RuntimeError):
    """A record could not be turned into a sample; the message names its file and image id."""


class DatasetError(ValueError):
    """A data set that cannot be used; the message names file and records and what to do."""


class CheckpointWriteError(OSError):
    """A file could not be written; what was there before is unchanged."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: damaged, or no checkpoint. The message names the file."""


class UnsafeCheckpointError(CheckpointError):
    """A file holds more than weights and plain values; nothing of it was executed."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint does not fit the model; the message lists the keys."""
