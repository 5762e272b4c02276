"""Recognize checkpoint files by their first bytes, since names and downloads can be wrong."""

import os
import zipfile
from typing import Literal

from tokendetr.errors import CheckpointError

__all__ = ["Format", "recognized_format"]

Format = Literal["safetensors", "torch", "zoo pickle"]

_HEAD = 512  # bytes that are looked at
_MERGE = (
    "merge them by safetensors.torch, save_file({name: tensor for file in files for name, tensor "
    "in load_file(file).items()}, 'merged.safetensors')"
)
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "is a pointer that Git LFS has left in place of the file: fetch it by `git lfs pull`",
    ),
    (b"<", "is a web page or XML, no checkpoint: what its address led to was not the file"),
    (b"{", "is JSON, no checkpoint: name the file that holds the weights"),
    (b"\x1f\x8b", "is compressed: unpack it by gunzip"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it"),
    (b"\x89HDF", "is an HDF5 file, of another framework: convert it"),
    (b"\x08", "begins like an ONNX file: name the checkpoint that it was exported from"),
)
_TAR_MARK = slice(257, 262)


def recognized_format(path: str) -> Format:
    """Return the format of a checkpoint file, by its content where that is clear, else by its name.

    Raises:
        CheckpointError: it is something else; the message says what, and what to do.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if _is_safetensors(head, os.path.getsize(path)):
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path)
        return "torch"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"{") and b'"weight_map"' in text:
        raise CheckpointError(f"{path} is the index of weights in several files: {_MERGE}")
    for mark, what in _FOREIGN:
        if text.startswith(mark):
            raise CheckpointError(f"{path} {what}")
    if head[_TAR_MARK] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive: unpack it, and name the checkpoint in it")
    name = path.lower()
    if name.endswith(".safetensors"):
        return "safetensors"
    return "zoo pickle" if name.endswith(".pkl") else "torch"


def _is_safetensors(head: bytes, size: int) -> bool:
    """Return whether a file begins with the length of a header, and a header."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 0 < length <= size - 8


def _check_archive(path: str) -> None:
    """Refuse archives that ``torch.save`` did not write.

    Raises:
        CheckpointError: the message says what it is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged or is not a checkpoint: {error}") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript program, not a checkpoint: save the state dict of its model"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(
            f"{path} is an archive that torch.save did not write (it holds "
            f"{', '.join(names[:3])}): if a checkpoint is in it, unpack it"
        )
