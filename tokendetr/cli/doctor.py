"""Check an installation: versions, kernels, data sets, one timed forward pass and training step.

Examples:
    tokendetr doctor
    tokendetr doctor --json doctor.json

The exit code is 1 if something does not work, for use in continuous integration.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tokendetr.cli.argument_types import output_file
from tokendetr.cli.arguments import described_parser
from tokendetr.cli.program import program
from tokendetr.compat.opencv import has_windows
from tokendetr.compat.stand_ins import is_stand_in
from tokendetr.data.paths import datasets_root
from tokendetr.io.atomic import write_atomically

OK, NOTE, FAILED = "ok", "note", "FAILED"
OLDEST_TORCH = (2, 10)
UNKNOWN = "no version known"
OPTIONAL = {
    "hotcoco": "fast COCO evaluation, VOC and YOLO labels, analysis of results",
    "plotly": "reports",
    "faster_coco_eval": "fast COCO evaluation",
    "lvis": "LVIS evaluation",
    "transformers": "Token Transforming of Hugging Face's models",
    "timm": "Token Transforming of timm's models",
    "supervision": "Detections.to_supervision()",
    "wandb": "train.wandb.enabled=True",
}
DATA_SETS = {
    "coco": "COCO",
    "lvis": "LVIS",
    "VOC2007": "VOC 2007",
    "VOC2012": "VOC 2012",
    "bdd100k": "BDD100K",
    "shapes": "shapes",
    "shapes_test": "shapes (test)",
    "bccd": "BCCD",
}
NEEDED = ("numpy", "scipy", "pillow", "omegaconf", "hydra-core", "fvcore", "iopath", "pycocotools")
KEEP_PKG_RESOURCES = "pip install 'setuptools<82': version 82 no longer has pkg_resources"


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        name: what was checked.
        state: "ok", "note" (works, with a remark) or "FAILED".
        text: what was found.
        remedy: what to do; empty if nothing has to be done.
    """

    name: str
    state: str
    text: str
    remedy: str = ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN


def check_python() -> list[Finding]:
    """Check Python and this package."""
    import tokendetr

    where = Path(tokendetr.__file__).parent
    return [
        Finding("python", OK, f"{platform.python_version()} on {platform.platform()}"),
        Finding("tokendetr", OK, f"{tokendetr.__version__} in {where}"),
    ]


def check_packages() -> list[Finding]:
    """Check the versions of required packages."""
    versions = {name: _version(name) for name in NEEDED}
    missing = [name for name, version in versions.items() if version == UNKNOWN]
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    remedy = f"pip install {' '.join(missing)}" if missing else ""
    return [Finding("packages", FAILED if missing else OK, text, remedy)]


def check_torch() -> list[Finding]:
    """Check PyTorch, its CUDA support, and whether bfloat16 pays on this processor."""
    import torch

    from tokendetr.layers.precision import emulates_bfloat16

    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    new_enough = release >= OLDEST_TORCH
    wanted = ".".join(map(str, OLDEST_TORCH))
    cuda = torch.version.cuda
    built = f"torch is built for CUDA {cuda}" if cuda else "torch is built without CUDA"
    gpu = "no GPU is visible"
    if torch.cuda.is_available():
        gpu = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return [
        Finding(
            "torch",
            OK if new_enough else FAILED,
            f"{torch.__version__}, {torch.get_num_threads()} threads"
            + "; bfloat16 is slower than float32 on this CPU" * emulates_bfloat16(),
            "" if new_enough else f"pip install 'torch>={wanted}'",
        ),
        Finding("cuda", OK, f"{built}; {gpu}; {shutil.which('nvcc') or 'no nvcc'}"),
        *_check_torchvision(),
    ]


def _check_torchvision() -> list[Finding]:
    """Check that torchvision imports; one built for another PyTorch does not."""
    if importlib.util.find_spec("torchvision") is None:
        return []
    try:
        import torchvision
    except (ImportError, OSError, RuntimeError) as error:
        remedy = "pip install the torchvision of this torch's release, or pip uninstall torchvision"
        return [Finding("torchvision", NOTE, f"does not import: {_line(error)}", remedy)]
    return [Finding("torchvision", OK, str(torchvision.__version__))]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def check_upstream() -> list[Finding]:
    """Check whether detectron2 and detrex are the real ones or the stand-ins."""
    found = []
    for name in ("detectron2", "detrex"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            remedy = "in the checkout: pip install ./standalone; or both packages themselves"
            found.append(Finding(name, FAILED, "cannot be imported", remedy))
            continue
        kind = "stand-in" if is_stand_in(name) else f"real, {_version(name)}"
        found.append(Finding(name, OK, f"{kind}: {Path(spec.origin).parent}"))
    real = [finding for finding in found if finding.text.startswith("real")]
    if real and importlib.util.find_spec("pkg_resources") is None:
        text = "missing: detectron2's model zoo and detrex's config loader import it"
        found.append(Finding("pkg_resources", FAILED, text, KEEP_PKG_RESOURCES))
    if any(finding.name == "detrex" for finding in real) and not _is_there("detrex._C"):
        text = "detrex was built without its kernels: its own detectors do not build on a CPU"
        found.append(Finding("detrex._C", NOTE, text, "tokendetr's detectors do not need it"))
    found.append(_check_projects())
    return found


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except Exception:  # the package around it may fail in any way
        return False


def _check_projects() -> Finding:
    from tokendetr.config.files import PROJECTS_DIR

    spec = importlib.util.find_spec("projects")
    locations = (spec.submodule_search_locations or []) if spec else []
    folders = [Path(folder).resolve() for folder in locations]
    if not folders or folders[0] == PROJECTS_DIR:
        return Finding("projects", OK, f"import projects leads to {PROJECTS_DIR}")
    text = f"import projects leads to {folders[0]} first; tokendetr's configs do not use that name"
    return Finding("projects", NOTE, text)


def check_kernels() -> list[Finding]:
    """Check the compiled operators."""
    from tokendetr.ops.library import library_facts

    facts = library_facts()
    rebuild = "in the checkout: pip install --no-build-isolation --force-reinstall --no-deps ."
    if facts.load_error is not None:
        return [Finding("kernels", NOTE, f"plain PyTorch runs: {facts.load_error}", rebuild)]
    kinds = ", ".join(facts.device_types)
    found = [
        Finding(
            "kernels",
            OK,
            f"for {kinds}; CPU kernels: {facts.instruction_set}; built with torch {facts.torch}, "
            f"{facts.compiler or 'unknown compiler'}",
        )
    ]
    found += [
        Finding(f"kernels ({part})", NOTE, f"left out: {why}")
        for part, why in facts.left_out.items()
    ]
    return found


def check_tools() -> list[Finding]:
    """Check the compiler and optional packages."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    there = shutil.which(compiler)
    found = [
        Finding("compiler", OK, there)
        if there
        else Finding(
            "compiler", NOTE, f"no {compiler}", "only needed to build kernels (apt install g++)"
        )
    ]
    for module, purpose in OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            found.append(Finding(module, NOTE, f"not installed; for {purpose}"))
    return [*found, *_check_opencv()]


def _check_opencv() -> list[Finding]:
    """Check OpenCV, and whether it has windows; the headless package does not."""
    if importlib.util.find_spec("cv2") is None:
        text = "not installed; for videos"
        return [Finding("cv2", NOTE, text, "pip install opencv-python-headless")]
    try:
        import cv2

        windows = has_windows(cv2)
    except (ImportError, OSError) as error:
        remedy = "pip install opencv-python-headless in place of opencv-python"
        return [Finding("cv2", NOTE, f"does not import: {_line(error)}", remedy)]
    text = f"{cv2.__version__}, {'with' if windows else 'without'} windows"
    remedy = "" if windows else "for predict --webcam without --output: pip install opencv-python"
    return [Finding("cv2", OK if windows else NOTE, text, remedy)]


def check_data() -> list[Finding]:
    """Check which data sets exist under ``DETECTRON2_DATASETS``."""
    root = datasets_root()
    there = [name for folder, name in DATA_SETS.items() if (root / folder).is_dir()]
    text = f"{root.resolve()}: {', '.join(there) or 'none of the known data sets'}"
    remedy = "" if there else "set DETECTRON2_DATASETS, or tokendetr make-shapes"
    return [Finding("data sets", OK if there else NOTE, text, remedy)]


def check_model() -> list[Finding]:
    """Run one forward pass and one training step of a small detector."""
    import torch
    from detectron2.utils.events import EventStorage

    from tokendetr.analysis.flops import synthetic_inputs
    from tokendetr.analysis.inputs import synthetic_targets
    from tokendetr.analysis.machine_load import machine_load
    from tokendetr.config import zoo

    load = machine_load()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = zoo.load("dino_shapes", checkpoint=None, device=device)
    images = synthetic_inputs(256, 256)
    with torch.no_grad():
        model(images)
        started = time.perf_counter()
        model(images)
        forward_ms = 1e3 * (time.perf_counter() - started)
    records = synthetic_targets(images, num_classes=12)
    started = time.perf_counter()
    with EventStorage():
        losses = model.train()(records)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
    step_ms = 1e3 * (time.perf_counter() - started)
    finite = bool(total.isfinite())
    timed = f"{forward_ms:.0f} ms at 256 x 256 on {device} (dino_shapes)"
    busy = "other programs keep this machine busy: times are longer than its own"
    return [
        Finding(
            "forward pass",
            NOTE if load.is_busy else OK,
            f"{timed}, {load.text}" if load.text else timed,
            busy if load.is_busy else "",
        ),
        Finding(
            "training step", OK if finite else FAILED, f"{step_ms:.0f} ms, loss {total.item():.3g}"
        ),
    ]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    check_python,
    check_packages,
    check_torch,
    check_upstream,
    check_kernels,
    check_tools,
    check_data,
    check_model,
)


def examine(checks: Sequence[Callable[[], list[Finding]]] = CHECKS) -> list[Finding]:
    """Run all checks; a check that raises becomes a finding."""
    found: list[Finding] = []
    for check in checks:
        try:
            found += check()
        except Exception as error:  # a broken installation fails in any way
            name = check.__name__.removeprefix("check_")
            remedy = ""
            if isinstance(error, ModuleNotFoundError) and error.name == "pkg_resources":
                remedy = KEEP_PKG_RESOURCES
            found.append(Finding(name, FAILED, _line(error), remedy))
    return found


@program()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = described_parser(__doc__)
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="also write the findings here"
    )
    args = parser.parse_args(arguments)
    found = examine()
    for finding in found:
        print(f"{finding.state:7}{finding.name:20}{finding.text}")
        if finding.remedy:
            print(f"{'':27}-> {finding.remedy}")
    if args.json:
        text = json.dumps([asdict(finding) for finding in found], indent=2)
        write_atomically(args.json, f"{text}\n".encode())
    if any(finding.state == FAILED for finding in found):
        sys.exit(1)
