"""The typed errors of the library: what a user can cause, and can mend by what the message says."""

__all__ = ["CheckpointError", "CheckpointMismatchError", "UnsafeCheckpointError"]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: damaged, or no checkpoint. The message names the file."""


class UnsafeCheckpointError(CheckpointError):
    """A file holds more than weights and plain values; nothing of it was executed."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint does not fit the model; the message lists the keys."""
