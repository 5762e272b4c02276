"""Export a detector to a file, and verify that the file computes the same."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.export import ExportedProgram

from tokendetr.analysis.recorded_rows import machine
from tokendetr.deploy.entry import DeployedDetector, checked_detector
from tokendetr.deploy.operators import SAMPLINGS, Sampling
from tokendetr.deploy.programs import SUFFIXES, Format, trace, write_program
from tokendetr.deploy.runtimes import RUNTIMES, Library, installed_runtimes, open_exported
from tokendetr.deploy.verification import ExportedModel, compare, detect, verification_images
from tokendetr.errors import ExportCheckError, ExportError, OutputError, check_choice
from tokendetr.io.atomic import write_atomically
from tokendetr.io.outputs import check_output_file

MINIMUM_IMAGES = 8
MAXIMUM_PIXELS = 1 << 26
"""Pixels of a batch, as 8192 x 8192; a typing error would otherwise ask for all memory."""

AP_TOLERANCE = 0.1
"""Maximum difference between the AP (0 to 100) of a file and of the model on a data set."""

_TORCH_FORMATS = ("pt2", "aoti")
"""Formats that PyTorch runs, in any precision."""

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")

Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        format: "pt2" (torch.export), "aoti" (a package of AOTInductor), "onnx" (standard
            operators), "onnx-custom" (deformable attention as one node of domain ``tokendetr``),
            "openvino".
        size: height and width of the canvas in pixels.
        batch: images that the program takes at once.
        padding: images may be smaller than the canvas; False if all fill it, which is faster.
        sampling: implementation of deformable attention in the ONNX formats and OpenVINO,
            "grid_sample" or "gather".

    Raises:
        ExportError: an option has an unknown value; the message names it.
    """

    format: Format
    size: tuple[int, int]
    batch: int = 1
    padding: bool = True
    sampling: Sampling = "grid_sample"

    def __post_init__(self) -> None:
        check_choice("format", self.format, SUFFIXES, error=ExportError)
        if self.sampling not in SAMPLINGS or self.sampling == "custom":
            raise ExportError(f"sampling must be grid_sample or gather, got {self.sampling!r}")
        size = self.size if isinstance(self.size, Sequence) else ()
        numbers = [each for each in (*size, self.batch) if isinstance(each, int) and each >= 1]
        if len(size) != 2 or len(numbers) != 3:
            raise ExportError(
                "size must be a height and a width and batch a number, all whole and at least 1, "
                f"got {self.size!r} and {self.batch!r}"
            )
        pixels = self.size[0] * self.size[1] * self.batch
        if pixels > MAXIMUM_PIXELS:
            raise ExportError(
                f"size {self.size[0]} x {self.size[1]} and batch {self.batch} are {pixels:,} "
                f"pixels: at most {MAXIMUM_PIXELS:,} are supported; sizes are in pixels"
            )


def export(
    model: nn.Module,
    output: str | os.PathLike[str],
    options: ExportOptions,
    *,
    library: Library = None,
    images: Sequence[Tensor] | None = None,
    evaluate: Evaluate | None = None,
    source: str | None = None,
    program: ExportedProgram | None = None,
    expected: Sequence[Instances] | None = None,
) -> dict[str, Any]:
    """Export a detector, and keep the file only if it computes the same as the detector.

    The file is run in every installed runtime of its format on at least eight images, and its
    detections are matched with the model's: boxes within 0.5 pixels, scores within 1e-4. The result
    is written to ``<output>.json``, also of a file that is not kept, unless an older file of this
    name stays, to which its own record belongs.

    Args:
        model: one of this project's detectors.
        output: the file to write, with the extension of its format.
        options: what to export.
        library: for "onnx-custom", the shared library that computes the node, or one for each
            runtime.
        images: images to compare on, float [3, H, W] of values 0 to 255; None for synthetic ones.
        evaluate: returns the AP (0 to 100) of a detectron2-style model on a data set, which is then
            compared as well.
        source: name of the config, for the record.
        program: what :func:`tokendetr.deploy.programs.trace` made of this model for these options,
            so that several formats need one tracing.
        expected: what :func:`tokendetr.deploy.verification.detect` returned for this model and
            ``images``, which several formats can share as well.

    Returns:
        The record.

    Raises:
        ExportError: the model cannot be exported with these options, or no installed runtime can
            run the format.
        ExportCheckError: the file's results differ from the model's.
        OutputError: the file cannot be written.
    """
    path = Path(output)
    check_name(path, options.format)
    for written in (path, _record_path(path)):
        check_output_file(str(written))
    suffix = path.suffix
    _check_runtimes(options.format, library)
    _check_model(model, options.format)
    entry = DeployedDetector(model, padding=options.padding)
    began = time.perf_counter()
    if program is None:
        program = trace(entry, options.size, batch=options.batch)
    with _draft_folder(path) as folder:
        draft = Path(folder) / path.name
        write_program(program, draft, options.format, sampling=options.sampling)
        record = {"source": source, **asdict(options), "seconds": time.perf_counter() - began}
        record |= _verify(model, draft, options, library, images, evaluate, expected)
        verdict = "was not kept, the older file stays"
        if record["good"] or not path.exists():
            _write_record(path, record)
            verdict = f"was not kept, {_record_path(path)} has the details"
        _refuse_bad(path, record, verdict)
        for part in sorted(Path(folder).iterdir(), key=lambda each: each.suffix == suffix):
            os.replace(part, path.with_suffix(part.suffix))  # the file itself comes last
    return record


def check_name(path: str | os.PathLike[str], format: Format) -> None:
    """Check that a file is named as those of its format.

    Raises:
        ExportError: it has another extension.
    """
    if Path(path).suffix != SUFFIXES[format]:
        raise ExportError(f"{path}: a file of format {format} ends in {SUFFIXES[format]}")


def _draft_folder(path: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a folder beside a file, where its draft is verified before it gets its name."""
    try:
        return tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def check(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    library: Library = None,
    images: Sequence[Tensor] | None = None,
    evaluate: Evaluate | None = None,
) -> dict[str, Any]:
    """Verify an exported file again on this machine, and write its record anew.

    Args: as of :func:`export`; ``path`` is an exported file with its record beside it.

    Returns:
        The record.

    Raises:
        FileNotFoundError: there is no such file.
        ExportError: the record is missing, damaged, or of another file, or no installed runtime can
            run the file.
        ExportCheckError: the file computes something else here.
    """
    path = Path(path)
    record_path = _record_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no exported file {path}")
    try:
        record = json.loads(record_path.read_bytes())
        options = ExportOptions(
            format=record["format"],
            size=(int(record["size"][0]), int(record["size"][1])),
            batch=int(record["batch"]),
            padding=bool(record["padding"]),
            sampling=record["sampling"],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ExportError(
            f"{record_path}, which belongs beside {path.name}, is not a record of an export "
            f"({error}): copy it along with the file, or export the model again"
        ) from error
    if record.get("sha256") != _digest(path):
        raise ExportError(
            f"{record_path} is the record of another file than {path.name}, or the file was "
            "changed: copy both from where they were made, or export the model again"
        )
    _check_runtimes(options.format, library)
    _check_model(model, options.format)
    record |= _verify(model, path, options, library, images, evaluate)
    _write_record(path, record)
    _refuse_bad(path, record, f"must not be used here, {_record_path(path)} has the details")
    return record


def _check_runtimes(format: Format, library: Library) -> None:
    if installed_runtimes(format, library=library):
        return
    if format == "onnx-custom" and not library:
        raise ExportError(
            "a file with our own node is verified with the library that computes it: build it with "
            "`python csrc/openvino` (or csrc/onnxruntime, see docs/deploy.md) and give its path "
            "(library=..., --library FILE)"
        )
    raise ExportError(
        f"nothing here can run a file of format {format}, so it could not be verified: install "
        f"one of {', '.join(RUNTIMES[format])} (pip install 'tokendetr[deploy]')"
    )


def _check_model(model: nn.Module, format: Format) -> None:
    checked_detector(model)
    elsewhere = {each.device.type for each in model.parameters()} - {"cpu"}
    if elsewhere:
        raise ExportError(
            f"the model is on {', '.join(elsewhere)}, but files are made and verified on the CPU: "
            "move it there (model.cpu(), train.device=cpu)"
        )
    others = {each.dtype for each in model.parameters()} - {torch.float32}
    if others and format not in _TORCH_FORMATS:
        raise ExportError(
            f"the model has parameters in {', '.join(sorted(map(str, others)))}, but runtimes of "
            f"format {format} compute a detector in float32: export model.float()"
        )


def _verify(
    model: nn.Module,
    path: Path,
    options: ExportOptions,
    library: Library,
    images: Sequence[Tensor] | None,
    evaluate: Evaluate | None,
    expected: Sequence[Instances] | None = None,
) -> dict[str, Any]:
    """Return the results of the comparison in each runtime, and whether all are good."""
    if images is None:
        images = verification_images(options.size, padding=options.padding, count=MINIMUM_IMAGES)
    if len(images) < MINIMUM_IMAGES:
        raise ExportError(f"verification needs at least {MINIMUM_IMAGES} images, got {len(images)}")
    checks: dict[str, Any] = {}
    if expected is None:
        expected = detect(model.eval(), images)
    ap_of_model = None if evaluate is None else evaluate(model.eval())
    for runtime in installed_runtimes(options.format, library=library):
        runner = open_exported(path, runtime, library=library)
        exported = ExportedModel(
            runner, options.size, padding=options.padding, batch=options.batch
        ).eval()
        found = compare(model, expected, exported, images).record()
        if evaluate is not None and ap_of_model is not None:
            found |= {"ap_of_model": ap_of_model, "ap": evaluate(exported)}
            found["good"] = found["good"] and abs(found["ap"] - ap_of_model) <= AP_TOLERANCE
        checks[runtime] = found
    return {
        "file": path.name,
        "sha256": _digest(path),
        "checks": checks,
        "good": bool(checks) and all(each["good"] for each in checks.values()),
        "versions": _versions(),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file; of OpenVINO's two files, that of both in a row."""
    digest = hashlib.sha256(path.read_bytes())
    if path.suffix == SUFFIXES["openvino"]:
        try:
            digest.update(path.with_suffix(".bin").read_bytes())
        except OSError as error:
            raise ExportError(
                f"{path} has its weights in {path.with_suffix('.bin')}, which cannot be read "
                f"({error.strerror}): copy both files"
            ) from error
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _write_record(path: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(str(_record_path(path)), text.encode())


def _refuse_bad(path: Path, record: dict[str, Any], verdict: str) -> None:
    if record["good"]:
        return
    bad = {name: each for name, each in record["checks"].items() if not each["good"]}
    facts = "; ".join(f"{name}: {_described(each)}" for name, each in bad.items())
    raise ExportCheckError(
        f"{path} does not compute what the model computes and {verdict}: {facts}"
    )


def _described(found: dict[str, Any]) -> str:
    """Return a description of a runtime's result."""
    text = (
        f"boxes differ by {found['box_px']:.3g} px, scores by {found['score']:.3g}, "
        f"{found['unmatched']} of {found['detections']} detections have no partner"
    )
    if "ap" in found:
        text += f", AP is {found['ap']:.2f} where the model has {found['ap_of_model']:.2f}"
    return text
