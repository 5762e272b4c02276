"""Damaged and malicious checkpoints: each is read right or refused by one error class."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from tests.reliability.mutations import damaged
from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.safetensors import save_safetensors
from tokendetr.checkpoint.weights import load_weights, read_checkpoint
from tokendetr.compat.stand_ins import is_stand_in
from tokendetr.errors import CheckpointError, UnsafeCheckpointError

__all__ = ["GADGETS", "HEADERS", "damaged_checkpoints", "malicious_checkpoints"]

MUTANTS_PER_CASE = 200


def small_model() -> nn.Module:
    """A model whose checkpoints have shared tensors, a buffer and an integer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model.add_module("twin", model[2])
    return model


def _torch_file(data: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(data, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def sound_files(folder: Path) -> list[tuple[str, bytes]]:
    """Name and content of one sound checkpoint of every format that is read."""
    state = small_model().state_dict()
    arrays = {name: value.numpy() for name, value in state.items()}
    zoo = {"model": arrays, "__author__": "somebody", "matching_heuristics": True}
    caffe = {"blobs": OrderedDict(conv1_w=np.ones((2, 3), "f4"), conv1_w_momentum=np.ones(3, "f4"))}
    save_safetensors(small_model(), str(folder / "sound.safetensors"), metadata={"recipe": "none"})
    files = [
        ("plain.pth", _torch_file({"model": state, "iteration": 3, "trainer": {"lr": [0.1]}})),
        ("old.pth", _torch_file({"model": state}, zipped=False)),
        ("bare.pth", _torch_file(state)),
        ("pycls.pyth", _torch_file({"model_state": state, "epoch": 1})),
        ("weights.safetensors", (folder / "sound.safetensors").read_bytes()),
    ]
    files += [(f"zoo{p}.pkl", pickle.dumps(zoo, protocol=p)) for p in range(6)]
    files += [(f"caffe{p}.pkl", pickle.dumps(caffe, protocol=p)) for p in (0, 2, 4)]
    return files


def read_everywhere(path: str) -> bool:
    """Read a file by all readers; whether it was accepted.

    Raises:
        AssertionError: an error of another class, or one that does not name the file.
    """
    accepted = True
    try:
        weights = read_checkpoint(path)["model"]
        assert all(isinstance(value, (Tensor, np.ndarray)) for value in weights.values())
    except CheckpointError as error:
        assert path in str(error), f"the message does not name the file: {error}"
        accepted = False
    try:
        load_weights(AtomicCheckpointer(small_model()), path)
    except CheckpointError as error:
        assert path in str(error), f"the message does not name the file: {error}"
    # The stand-in's reader; detectron2's own runs what a pickle says, and has no .safetensors.
    if is_stand_in("detectron2") and not path.endswith(".safetensors"):
        try:
            DetectionCheckpointer(small_model()).load(path)
        except ValueError as error:
            if not accepted:
                assert path in str(error), f"the message does not name the file: {error}"
    return accepted


def damaged_checkpoints(seed: int, folder: Path) -> int:
    """Read ``MUTANTS_PER_CASE`` damaged files; returns their number."""
    rng = random.Random(seed)
    files = sound_files(folder)
    for number in range(MUTANTS_PER_CASE):
        name, content = rng.choice(files)
        path = folder / name
        mutant = damaged(content, rng)
        path.write_bytes(mutant)
        try:
            read_everywhere(str(path))
        except Exception as error:
            raise AssertionError(f"mutant {number} ({name}): {error!r}") from error
    return MUTANTS_PER_CASE


# ---------------------------------------------------------------------------------- malice


class _Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def _gadgets(trap: str) -> dict[str, object]:
    """Objects whose unpickling would create the file ``trap``."""
    import functools
    import importlib
    import operator
    import shutil
    import subprocess

    code = f"open({trap!r}, 'w')"
    return {
        "os.system": _Call(os.system, f"touch {trap}"),
        "open": _Call(open, trap, "w"),
        "eval": _Call(eval, code),
        "exec": _Call(exec, code),
        "subprocess": _Call(subprocess.check_call, ["touch", trap]),
        "pickle": _Call(pickle.loads, pickle.dumps(_Call(open, trap, "w"))),
        "partial": _Call(functools.partial(open, trap, "w")),
        "copyfile": _Call(shutil.copyfile, __file__, trap),
        "import": _Call(importlib.import_module, "antigravity"),
        "methodcaller": _Call(operator.methodcaller("write_text", "x"), Path(trap)),
        "numpy": _Call(np.save, trap, np.zeros(1)),
        "torch": _Call(torch.save, {}, trap),
        "tofile": _Call(np.ndarray.tofile, np.zeros(1), trap),
        "compile": _Call(compile, code, "x", "exec"),
    }


GADGETS = sorted(_gadgets("trap"))


def _pointer_pickle() -> bytes:
    """An array of objects in disguise: its bytes would be taken for a pointer."""

    def name(module: str, attribute: str) -> bytes:
        return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"

    object_type = (  # dtype('O8', False, True) whose flags are then set to 0
        name("numpy", "dtype")
        + b"X\x02\x00\x00\x00O8\x89\x88\x87R(K\x03X\x01\x00\x00\x00|NNN"
        + b"J\xff\xff\xff\xff" * 2
        + b"K\x00tb"
    )
    address = struct.pack("<Q", 0x4141414141414141)
    scalar = name("numpy._core.multiarray", "scalar") + object_type + b"C\x08" + address + b"\x86R"
    return b"\x80\x04}X\x05\x00\x00\x00model}X\x01\x00\x00\x00w" + scalar + b"ss."


def _safetensors(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _tensor_header(**changes: object) -> dict[str, object]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def _zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/data/0", bytes(1 << 24))
    return buffer.getvalue()


_NESTED = b"[" * 100_000 + b"]" * 100_000
_STRINGS = {"__metadata__": {"aliases": '{"a": "w", "b": {"c": 1}}'}, **_tensor_header()}
HEADERS: dict[str, bytes] = {
    "pointer.pkl": _pointer_pickle(),
    "memo.pkl": b"\x80\x02}r\x51\x4e\x4f\x4f.",
    "length.pkl": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",
    "integer.pkl": b"\x80\x02}U\x01a\x8b" + struct.pack("<i", 1 << 30) + b"s.",
    "nested.pkl": b"]" * 100_000 + b"a" * 99_999 + b".",
    "doubling.pkl": b"\x80\x02]q\x00" + b"h\x00h\x00\x86q\x00" * 64 + b".",
    "encode.pkl": (
        b"\x80\x02]X\x00\x00\x01\x00" + b"a" * 65536 + b"q\x010"
        + b"c_codecs\nencode\nq\x020" + b"h\x02h\x01\x85Ra" * 2000 + b"."
    ),
    "bomb.pth": _zip_bomb(),
    "empty.pth": b"",
    "empty.pkl": b"",
    "empty.safetensors": b"",
    "huge.safetensors": struct.pack("<Q", 1 << 62) + b"{}",
    "list.safetensors": _safetensors([1]),
    "nested.safetensors": _safetensors(b'{"a":' + _NESTED + b"}"),
    "aliases.safetensors": _safetensors(_STRINGS, bytes(8)),
    "alias_nested.safetensors": _safetensors(
        {"__metadata__": {"aliases": _NESTED.decode()}, **_tensor_header()}, bytes(8)
    ),
    "alias_list.safetensors": _safetensors(
        {"__metadata__": {"aliases": "[[1, 2]]"}, **_tensor_header()}, bytes(8)
    ),
    "offsets.safetensors": _safetensors(_tensor_header(data_offsets=[8, 0]), bytes(8)),
    "beyond.safetensors": _safetensors(_tensor_header(data_offsets=[0, 80]), bytes(8)),
    "negative.safetensors": _safetensors(_tensor_header(shape=[-2]), bytes(8)),
    "overflow.safetensors": _safetensors(_tensor_header(shape=[1 << 62, 8]), bytes(8)),
    "dtype.safetensors": _safetensors(_tensor_header(dtype="OBJECT"), bytes(8)),
}  # fmt: skip


def malicious_checkpoints(seed: int, folder: Path) -> int:
    """Read files that would run code, follow pointers or take all memory; returns their number.

    Raises:
        AssertionError: something was executed, or a file was not refused by its error class.
    """
    trap = folder / "executed"
    number = 0
    for name, gadget in _gadgets(str(trap)).items():
        data = {"model": {"weight": gadget}, "__author__": "x"}
        contents = {f"p{p}.pkl": pickle.dumps(data, protocol=p) for p in range(6)}
        contents["new.pth"] = _torch_file(data)
        contents["old.pth"] = _torch_file(data, zipped=False)
        for ending, content in contents.items():
            path = folder / f"{name}_{ending}"
            path.write_bytes(content)
            _expect_refusal(str(path), UnsafeCheckpointError)
            assert not trap.exists(), f"{path} was executed"
            number += 1
    for name, content in HEADERS.items():
        path = folder / name
        path.write_bytes(content)
        _expect_refusal(str(path), CheckpointError)
        number += 1
    return number


def _expect_refusal(path: str, kind: type[CheckpointError]) -> None:
    try:
        read_checkpoint(path)
    except kind as error:
        assert path in str(error)
    else:
        raise AssertionError(f"{path} was accepted")
    assert not read_everywhere(path)
