"""Files are written whole or not at all, hold plain data only, and load strictly."""

import errno
import io
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.train.toy import ToyDetector
from tokendetr.train import checkpoint as checkpoint_module
from tokendetr.train.checkpoint import (
    AtomicCheckpointer,
    CheckpointWriteError,
    plain_state,
    write_atomically,
)
from tokendetr.train.key_names import grouped_keys
from tokendetr.train.weights import (
    CheckpointMismatchError,
    UnsafeCheckpointError,
    load_slim,
    load_weights,
    read_checkpoint,
    save_slim,
)


def model_with(value):
    model = ToyDetector()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


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
        monkeypatch.setattr(checkpoint_module, "_CHUNK_BYTES", chunk)
        monkeypatch.setattr(
            checkpoint_module,
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
    checkpointer = AtomicCheckpointer(model_with(1.0), str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    checkpointer.model = model_with(2.0)
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
    checkpointer = AtomicCheckpointer(model_with(1.0), str(tmp_path))
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

        patch.setattr(checkpoint_module, "write_atomically", third_save_fails)
        with pytest.raises(CheckpointWriteError, match="no space"):
            toy_run(tmp_path / "full")
    resumed = toy_run(tmp_path / "full", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_read_only_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointWriteError, match="file/model"):
        write_atomically(str(tmp_path / "file" / "model.pth"), b"x")


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    (tmp_path / ".model_final.pth.4711.tmp").write_text("half")
    (tmp_path / "notes.tmp").write_text("mine")
    AtomicCheckpointer(model_with(0.0), str(tmp_path)).remove_leftovers()
    assert [p.name for p in tmp_path.iterdir()] == ["notes.tmp"]


def test_empty_pointer_of_another_program(tmp_path):
    checkpointer = AtomicCheckpointer(model_with(0.0), str(tmp_path))
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


# ------------------------------------------------------------------------------ reading


class Gadget:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("ending", [".pth", ".pkl", ".pyth", ".bin"])
@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_pickles_are_refused(tmp_path, ending, legacy):
    mark = tmp_path / "executed"
    path = str(tmp_path / f"evil{ending}")
    content = {"model": {"stem.weight": Gadget(mark)}, "__author__": "x"}
    if ending == ".pkl":
        with open(path, "wb") as file:
            pickle.dump(content, file)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeCheckpointError, match="was refused.*Nothing was executed"):
        read_checkpoint(path)
    with pytest.raises(UnsafeCheckpointError, match="evil"):
        load_weights(AtomicCheckpointer(ToyDetector()), path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "function", ["os.system", "builtins.eval", "subprocess.Popen", "posix.system"]
)
def test_globals_of_a_zoo_pickle(tmp_path, function):
    module, name = function.rsplit(".", 1)
    path = tmp_path / "evil.pkl"
    path.write_bytes(f"c{module}\n{name}\n(S'touch {tmp_path}/executed'\ntR.".encode())
    with pytest.raises(UnsafeCheckpointError, match=name):
        read_checkpoint(str(path))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
@pytest.mark.parametrize("ending", [".pth", ".pkl", ".safetensors"])
def test_damaged_files(tmp_path, content, ending):
    path = tmp_path / f"damaged{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(str(path))


def test_truncated_checkpoint(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": ToyDetector().state_dict()}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"model\.pth is damaged"):
        read_checkpoint(str(path))


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        read_checkpoint("nowhere.pth")


def test_zoo_pickle_matches_a_backbone(tmp_path):
    model = ToyDetector()
    stem = np.full((8, 3, 3, 3), 0.5, dtype=np.float32)
    path = tmp_path / "backbone.pkl"
    with open(path, "wb") as file:
        pickle.dump(
            {
                "model": {"weight": np.ones(1), "stem.weight": stem},
                "__author__": "third_party",
                "matching_heuristics": True,
            },
            file,
        )
    report = load_weights(AtomicCheckpointer(model), str(path))
    assert "stem.weight" in report.matched and not report.is_complete
    assert torch.equal(model.stem.weight, torch.from_numpy(stem))


# ------------------------------------------------------------------------------ matching


def save(tmp_path, state, **extra):
    path = str(tmp_path / "model.pth")
    torch.save({"model": state, **extra} if extra is not None else state, path)
    return path


def test_another_model_is_refused_with_its_keys(tmp_path):
    state = ToyDetector().state_dict()
    state["stem.weight"] = torch.zeros(8, 3, 5, 5)
    state["extra.weight"] = torch.zeros(1)
    for name in ("norm.bias", "bbox_embed.bias"):
        del state[name]
    path = save(tmp_path, state)
    with pytest.raises(CheckpointMismatchError) as caught:
        load_weights(AtomicCheckpointer(ToyDetector()), path)
    message = " ".join(str(caught.value).split())
    for text in (
        path,
        "missing in the file | 2 | norm.bias, bbox_embed.bias",
        "unexpected in the file | 1 | extra.weight",
        "wrong shape | 1 | stem.weight: [8, 3, 5, 5] in the file, [8, 3, 3, 3] in the model",
        "train.init_checkpoint_strict=False",
    ):
        assert text in message, text
    report = load_weights(AtomicCheckpointer(ToyDetector()), path, strict=False)
    assert len(report.matched) == len(ToyDetector().state_dict()) - 3


def test_nothing_matches(tmp_path):
    path = save(tmp_path, {"other.weight": torch.zeros(1)})
    with pytest.raises(CheckpointMismatchError, match="no key"):
        load_weights(AtomicCheckpointer(ToyDetector()), path, strict=False)


def test_bare_state_dict_and_module_prefix(tmp_path):
    source = model_with(0.25)
    path = str(tmp_path / "bare.pth")
    torch.save({f"module.{k}": v for k, v in source.state_dict().items()}, path)
    target = ToyDetector()
    assert load_weights(AtomicCheckpointer(target), path).is_complete
    assert torch.equal(target.stem.weight, source.stem.weight)


def test_matching_heuristics_query(tmp_path):
    path = str(tmp_path / "part.pth")
    torch.save({"weight": torch.zeros(1), "stem.weight": torch.ones(8, 3, 3, 3)}, path)
    model = ToyDetector()
    load_weights(AtomicCheckpointer(model), f"{path}?matching_heuristics=True")
    assert torch.equal(model.stem.weight, torch.ones(8, 3, 3, 3))
    with pytest.raises(ValueError, match="only matching_heuristics"):
        load_weights(AtomicCheckpointer(model), f"{path}?heuristics=True")


def test_moving_average_of_a_checkpoint(tmp_path):
    average = {n: torch.full_like(p, 3.0) for n, p in ToyDetector().named_parameters()}
    path = save(tmp_path, model_with(1.0).state_dict(), ema_state=average)
    model = ToyDetector()
    load_weights(AtomicCheckpointer(model), path, use_ema=True)
    assert model.stem.weight.unique().tolist() == [3.0]
    load_weights(AtomicCheckpointer(model), path)
    assert model.stem.weight.unique().tolist() == [1.0]


# ------------------------------------------------------------------------------ slim files


def test_slim_round_trip(tmp_path):
    model = ToyDetector()
    with torch.no_grad():
        model.norm.running_var.fill_(1e-12)  # float16 would make it zero
    path = str(tmp_path / "slim.safetensors")
    size = save_slim(model, path, metadata={"recipe": "toy"})
    assert size == os.path.getsize(path)
    assert size < sum(v.numel() * v.element_size() for v in model.state_dict().values())
    state = load_slim(path)
    assert list(state) and state.keys() == model.state_dict().keys()
    assert state["decoder.class_embed.weight"] is state["class_embed.weight"]
    assert torch.equal(state["norm.running_var"], model.norm.running_var)
    assert torch.equal(state["stem.weight"], model.stem.weight.half().float())
    other = ToyDetector()
    assert load_weights(AtomicCheckpointer(other), path).is_complete
    assert torch.equal(other.class_embed.weight, model.class_embed.weight.half().float())


def test_slim_file_without_aliases_loads(tmp_path):
    """Other programs drop the second name of a shared tensor without saying so."""
    from safetensors.torch import save_file

    state = {
        k: v.clone()
        for k, v in model_with(0.5).state_dict().items()
        if not k.startswith("decoder.")
    }
    path = str(tmp_path / "dropped.safetensors")
    save_file(state, path)
    model = ToyDetector()
    assert load_weights(AtomicCheckpointer(model), path).is_complete
    assert model.class_embed.weight.unique().tolist() == [0.5]


def test_slim_keeps_what_half_precision_cannot_hold(tmp_path):
    model = ToyDetector()
    with torch.no_grad():
        model.bbox_embed.weight[0, 0] = 1e6
    path = str(tmp_path / "slim.safetensors")
    save_slim(model, path)
    assert torch.equal(load_slim(path)["bbox_embed.weight"], model.bbox_embed.weight)
    with torch.no_grad():
        model.bbox_embed.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"bbox_embed\.weight is not finite"):
        save_slim(model, path)
    with pytest.raises(ValueError, match="must end in .safetensors"):
        save_slim(model, str(tmp_path / "slim.pth"))


def test_keys_that_differ_in_one_part_are_written_as_one():
    keys = [f"backbone.blocks.{i}.gate.{kind}" for i in (0, 1, 4) for kind in ("weight", "bias")]
    assert grouped_keys([*keys, "head.bias", "norm.bias"]) == [
        "backbone.blocks.{0,1,4}.gate.{weight,bias}",
        "head.bias",
        "norm.bias",
    ]
    assert grouped_keys([]) == []
