"""Checkpoints are written whole or not at all, and hold plain data only."""

import errno
import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.train.toy import toy_detector_of
from tokendetr.checkpoint import checkpointer
from tokendetr.checkpoint.checkpointer import AtomicCheckpointer, plain_state
from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.errors import CheckpointWriteError
from tokendetr.io import atomic
from tokendetr.io.atomic import write_atomically


class FailingFile(io.FileIO):
    """A file that fails at the n-th write, after having written a part."""

    countdown = 0
    code = errno.ENOSPC

    def write(self, data):
        FailingFile.countdown -= 1
        if FailingFile.countdown < 0:
            super().write(bytes(data)[: len(data) // 2])
            raise OSError(FailingFile.code, os.strerror(FailingFile.code))
        return super().write(data)


@pytest.fixture
def failing_disk(monkeypatch):
    """failing_disk(n, code): from now on the n-th write fails."""

    def start(countdown, code=errno.ENOSPC, chunk=1 << 10):
        FailingFile.countdown, FailingFile.code = countdown, code
        monkeypatch.setattr(atomic, "_CHUNK_BYTES", chunk)
        monkeypatch.setattr(
            atomic,
            "open",
            lambda path, mode="r", **text: (
                Path(path).open(mode, **text) if text else FailingFile(path, mode)  # noqa: SIM115
            ),
            raising=False,
        )

    return start


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("countdown", [0, 1, 3])
def test_failed_save_keeps_the_previous_checkpoint(tmp_path, failing_disk, code, countdown):
    checkpointer = AtomicCheckpointer(toy_detector_of(1.0), str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    checkpointer.model = toy_detector_of(2.0)
    failing_disk(countdown, code)
    with pytest.raises(CheckpointWriteError) as caught:
        checkpointer.save("model_0000002", iteration=2)
    message = str(caught.value)
    assert "model_0000002.pth" in message and "MiB are free" in message
    assert os.strerror(code) in message and caught.value.errno == code
    with pytest.raises(CheckpointWriteError):
        failing_disk(countdown, code)
        checkpointer.save("model_0000001", iteration=2)  # the name of the one that is there
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert checkpointer.get_checkpoint_file().endswith("model_0000001.pth")
    assert torch.equal(
        read_checkpoint(checkpointer.get_checkpoint_file())["model"]["stem.bias"], torch.ones(8)
    )


def test_failure_of_the_pointer_keeps_the_pointer(tmp_path, monkeypatch):
    checkpointer = AtomicCheckpointer(toy_detector_of(1.0), str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    replace = os.replace

    def fail_for_pointer(source, target):
        if target.endswith("last_checkpoint"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_for_pointer)
    with pytest.raises(CheckpointWriteError, match="last_checkpoint"):
        checkpointer.save("model_0000002", iteration=2)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not list(tmp_path.glob(".*"))


def test_run_on_a_full_disk_can_be_resumed(toy_run, tmp_path, monkeypatch):
    whole = toy_run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        saves = []

        def third_save_fails(path, content):
            saves.append(path)
            if len(saves) == 3:
                raise CheckpointWriteError(errno.ENOSPC, f"cannot write {path}: no space")
            write_atomically(path, content)

        patch.setattr(checkpointer, "write_atomically", third_save_fails)
        with pytest.raises(CheckpointWriteError, match="no space"):
            toy_run(tmp_path / "full")
    resumed = toy_run(tmp_path / "full", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_read_only_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointWriteError, match="file/model"):
        write_atomically(str(tmp_path / "file" / "model.pth"), b"x")


def test_only_a_full_disk_is_said_to_need_space(tmp_path, failing_disk):
    with pytest.raises(CheckpointWriteError, match="Is a directory") as caught:
        write_atomically(str(tmp_path), b"x")
    assert "space or" not in str(caught.value) and "Choose another folder" in str(caught.value)
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(CheckpointWriteError, match="link is a link to gone, which is missing"):
        write_atomically(str(tmp_path / "link" / "model.pth"), b"x")
    failing_disk(0)
    with pytest.raises(CheckpointWriteError, match="Free some space or choose another folder"):
        write_atomically(str(tmp_path / "model.pth"), b"x")


def test_asking_for_a_checkpoint_does_not_warn_of_a_pointer_to_no_file(tmp_path, caplog):
    saved = AtomicCheckpointer(toy_detector_of(0.0), str(tmp_path))
    saved.save("model_0000003", iteration=3)
    (tmp_path / "last_checkpoint").write_text("gone.pth")
    caplog.clear()
    assert saved.has_checkpoint() and not caplog.records
    assert saved.get_checkpoint_file() and "names no file" in caplog.text


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    (tmp_path / ".model_final.pth.4711.tmp").write_text("half")
    (tmp_path / "notes.tmp").write_text("mine")
    AtomicCheckpointer(toy_detector_of(0.0), str(tmp_path)).remove_leftovers()
    assert [p.name for p in tmp_path.iterdir()] == ["notes.tmp"]


def test_empty_pointer_of_another_program(tmp_path):
    checkpointer = AtomicCheckpointer(toy_detector_of(0.0), str(tmp_path))
    assert not checkpointer.has_checkpoint()
    for i in (3, 7):
        checkpointer.save(f"model_{i:07d}", iteration=i)
    for content in ("", "model_gone.pth"):
        (tmp_path / "last_checkpoint").write_text(content)
        assert checkpointer.get_checkpoint_file().endswith("model_0000007.pth")
    (tmp_path / "last_checkpoint").unlink()
    assert checkpointer.has_checkpoint()


def test_states_become_plain():
    state = plain_state(
        {
            "lr": np.float64(0.1),
            "steps": (np.int32(3), [np.arange(2)]),
            "w": nn.Parameter(torch.ones(1)),
        }
    )
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert loaded["lr"] == 0.1 and loaded["steps"][0] == 3
    assert torch.equal(loaded["steps"][1][0], torch.arange(2))
    with pytest.raises(TypeError, match=r"checkpoint\.a\.b\[1\] is a Random"):
        plain_state({"a": {"b": [1, random.Random()]}})


def test_module_versions_are_kept():
    state = plain_state(nn.BatchNorm2d(2).state_dict())
    assert state._metadata[""]["version"] == 2
