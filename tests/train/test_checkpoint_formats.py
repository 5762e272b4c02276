"""Checkpoint files under wrong names, and files that are not checkpoints."""

import gzip
import io
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save

from tokendetr.checkpoint.reading import read_checkpoint
from tokendetr.errors import CheckpointError

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


def torch_file(**options) -> bytes:
    content = io.BytesIO()
    torch.save({"model": STATE}, content, **options)
    return content.getvalue()


def tar_file() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        entry = tarfile.TarInfo("model.pth")
        entry.size = len(torch_file())
        archive.addfile(entry, io.BytesIO(torch_file()))
    return content.getvalue()


def zip_file() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("model.pth", torch_file())
    return content.getvalue()


def program() -> bytes:
    content = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.pth", save(STATE)),
        ("weights.bin", save(STATE)),
        ("weights.pkl", save(STATE)),
        ("WEIGHTS.SAFETENSORS", save(STATE)),
        ("weights.safetensors", torch_file()),
        ("weights.pkl", torch_file()),
        ("no suffix", torch_file(_use_new_zipfile_serialization=False)),
    ],
)
def test_a_checkpoint_is_read_under_any_name(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    found = read_checkpoint(str(path))["model"]
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], value) for key, value in STATE.items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "pkl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"\x08\x0a\x12\x07pytorch\x1a\x062.14.1", "ONNX file: name the checkpoint"),
        (b'{"weight_map": {}}', r"index of weights in several files: merge .* save_file"),
        (b'{"a": 1}', "is JSON"),
        (gzip.compress(torch_file()), "gunzip"),
        (tar_file(), "tar archive: unpack it"),
        (zip_file(), r"did not write \(it holds model.pth\)"),
        (program(), "TorchScript program.*save the state dict"),
    ],
)
def test_what_is_no_checkpoint_is_said(content, message, suffix, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as refusal:
        read_checkpoint(str(path))
    assert str(path) in str(refusal.value)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_checkpoint(str(tmp_path))
