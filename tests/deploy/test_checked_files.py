"""A check says what is wrong with a file that cannot be checked, and does not touch it."""

import hashlib
import json
import re

import pytest
import torch

from tests.deploy.models import CANVAS, build
from tokendetr.cli import export_model
from tokendetr.deploy import ExportOptions, check, export, open_exported
from tokendetr.deploy.verification import ExportedModel
from tokendetr.errors import ExportError, InputError


def write_file(folder, name, *, format="pt2", content=b"no program"):
    """Write a file that is no export, with a record as an export leaves it."""
    path = folder / name
    path.write_bytes(content)
    facts = {"format": format, "size": CANVAS, "batch": 1, "padding": True}
    digest = hashlib.sha256(content).hexdigest()
    record = {**facts, "sampling": "grid_sample", "sha256": digest, "good": True}
    path.with_name(name + ".json").write_text(json.dumps(record))
    return path


def refusal(path):
    """Return what the check of a file says, and make sure that it writes nothing."""
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    with pytest.raises((ExportError, FileNotFoundError)) as caught:
        check(build("deformable"), path)
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    assert re.search(r"no exported file .*none\.pt2", refusal(tmp_path / "none.pt2"))


def test_a_file_without_its_record_is_named(tmp_path):
    path = write_file(tmp_path, "a.pt2")
    (tmp_path / "a.pt2.json").unlink()
    assert "belongs beside a.pt2" in refusal(path)


def test_a_file_that_is_not_the_recorded_one_is_named(tmp_path):
    path = write_file(tmp_path, "a.pt2")
    path.write_bytes(b"another file")
    assert "is the record of another file than a.pt2" in refusal(path)


def test_a_file_that_the_runtime_cannot_load_is_named(tmp_path):
    assert "torch.export cannot load a.pt2" in refusal(write_file(tmp_path, "a.pt2"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "1000000", "1000000"], "at most 67,108,864"),
        (["--size", "8192", "8192", "--batch", "2"], "batch 2 are 134,217,728 pixels"),
        (
            ["--size", "256", "256", "--format", "pt2"],
            r"a\.onnx: a file of format pt2 ends in",
        ),
    ],
)
def test_what_could_not_be_exported_is_refused_before_the_model_is_built(
    options, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(export_model, "build_model", lambda cfg: pytest.fail("was built"))
    command = ["--config-file", "dino_shapes", "--output", str(tmp_path / "a.onnx"), *options]
    with pytest.raises(SystemExit) as caught:
        export_model.main(command)
    assert re.search(message, caught.value.code)


@pytest.mark.parametrize(
    ("size", "batch"),
    [
        ((64.5, 64), 1),
        ((float("nan"), 64), 1),
        (("64", 64), 1),
        (64, 1),
        (None, 1),
        ((64, 64), 1.5),
    ],
)
def test_sizes_are_two_whole_numbers(size, batch):
    with pytest.raises(ExportError, match="all whole and at least 1, got"):
        ExportOptions("pt2", size, batch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_refused_before_the_model_is_traced(dtype, tmp_path):
    pytest.importorskip("onnxruntime")
    options = ExportOptions("onnx", (64, 64))
    with pytest.raises(ExportError, match=r"parameters in torch\..*export model\.float\(\)"):
        export(build("deformable").to(dtype), tmp_path / "a.onnx", options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_onnx_runtimes_name_a_file_that_they_cannot_load(runtime, tmp_path):
    pytest.importorskip(runtime)
    path = write_file(tmp_path, "a.onnx", format="onnx", content=b"garbage")
    with pytest.raises(ExportError, match=rf"{runtime} cannot load a\.onnx"):
        open_exported(path, runtime)


@pytest.mark.parametrize("shape", [(3, 0, 5), (1, 8, 8), (8, 8)])
def test_what_is_no_image_is_refused_as_by_the_detector(shape):
    model = ExportedModel(lambda *_: pytest.fail("was run"), CANVAS, padding=True)
    with pytest.raises(InputError, match=r"image 0 of the batch: 'image' must have shape"):
        model([{"image": torch.zeros(shape)}])


def test_openvino_files_are_checked_with_their_weights(tmp_path):
    path = write_file(tmp_path, "a.xml", format="openvino")
    assert "copy both files" in refusal(path)
    (tmp_path / "a.bin").write_bytes(b"other weights")
    assert "record of another file than a.xml" in refusal(path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--check"], r"no exported file .*none\.onnx"),
        (["--size", "0", "64"], "--size: .0. is not a whole number"),
        ([], "--size HEIGHT WIDTH is needed"),
    ],
)
def test_the_program_refuses_arguments_before_it_loads_a_config(
    arguments, message, tmp_path, capsys
):
    output = ["--output", str(tmp_path / "none.onnx")]
    with pytest.raises(SystemExit) as caught:
        export_model.main(["--config-file", "there_is_none", *output, *arguments])
    assert re.search(message, f"{caught.value} {capsys.readouterr().err}")
