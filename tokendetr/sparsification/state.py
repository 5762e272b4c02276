"""The file from which an interrupted fit resumes."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokendetr.errors import StaleFitError
from tokendetr.io.atomic import write_atomically

__all__ = ["STAGES", "FitState", "weights_digest"]

STAGES = ("maps", "scores", "distillation")


class FitState:
    """State of a fit, saved in one file.

    Args:
        path: of the file; None: nothing is saved.
        fingerprint: weights, images and options of the fit.

    Raises:
        StaleFitError: the file belongs to another fit, or is damaged.
    """

    def __init__(self, path: Path | None, fingerprint: dict[str, Any]) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.loaded: dict[str, Any] = {}
        if path is None or not path.is_file():
            return
        self.loaded = _read(path)
        if self.loaded["fingerprint"] != fingerprint:
            raise StaleFitError(
                f"{path} belongs to an unfinished fit with other weights, images or options "
                f"({_differences(self.loaded['fingerprint'], fingerprint)}): delete it, or choose "
                "another output folder"
            )

    def save(self, stage: str, **payload: Any) -> None:
        """Save the progress of a stage; does nothing without a file."""
        if self.path is None:
            return
        content = {"fingerprint": self.fingerprint, "stage": stage, **payload}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomically(str(self.path), buffer.getvalue())

    def of(self, stage: str) -> dict[str, Any] | None:
        """Return the saved progress of a stage: None before it began, empty if it is complete."""
        if not self.loaded:
            return None
        saved = STAGES.index(self.loaded["stage"])
        if saved > STAGES.index(stage):
            return {}
        return self.loaded if saved == STAGES.index(stage) else None


def weights_digest(module: nn.Module) -> str:
    """Return a hash of a module's state dict."""
    content = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        content.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        content.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return content.hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    """Load the file and check the outermost layout of its contents.

    Raises:
        StaleFitError: the file is damaged or not an unfinished fit.
    """
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        is_right = isinstance(found["fingerprint"], dict) and found["stage"] in STAGES
    except Exception as error:  # whatever a damaged file may raise
        raise StaleFitError(f"{path} is damaged ({error!r}): delete it to start anew") from error
    if not is_right:
        raise StaleFitError(f"{path} is not an unfinished fit: delete it to start anew")
    return found


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}: {old.get(key)}, now {value}" for key, value in new.items() if old.get(key) != value
    )
