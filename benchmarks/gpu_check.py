"""Check the project on a bare machine: one GPU, PyTorch with CUDA, nvcc, no network.

python benchmarks/gpu_check.py --json FILE [--minutes 9] [--wheels FOLDER] [--parts tests ...]

Parts, in order: install what is missing from a folder of wheels, build the kernels for this card
alone, the CUDA tests of both operators, compute-sanitizer on a few of them, the operators'
benchmarks, whole detectors. FILE has one record per part and is written after each; a part that
passed is not repeated, so a run that was cut short goes on. ``--dry-run`` runs every part on a
machine without GPU, with emulated kernels and small sizes.
"""

import argparse
import importlib.util
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    *("PIL", "antlr4", "cloudpickle", "fvcore", "hydra", "iopath", "ninja", "numpy"),
    *("omegaconf", "pycocotools", "pytest", "pytest_timeout", "safetensors", "scipy", "setuptools"),
    *("tabulate", "tqdm", "yaml"),
)
CUDA_TESTS = ["tests/ops/test_cuda.py", "tests/ops/test_cuda_packed.py"]
EMULATED_TESTS = ["tests/ops/test_cuda_emulated.py", "tests/ops/test_cuda_packed_emulated.py"]


@dataclass(frozen=True)
class Part:
    """One step: a command, where its results are, and the most seconds it may take."""

    name: str
    command: list[str]
    seconds: float
    results: Path | None = None
    variables: tuple[tuple[str, str], ...] = ()
    skipped: str | None = None


def card() -> dict[str, Any]:
    """Return what the machine is, asked of PyTorch in a process of its own."""
    script = (
        "import json, torch; c = torch.cuda; on = c.is_available(); "
        "print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda, "
        "'card': c.get_device_name() if on else None, "
        "'capability': '%d.%d' % c.get_device_capability() if on else None}))"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if told.returncode != 0:
        sys.exit(f"PyTorch cannot be imported by {sys.executable}:\n{told.stderr}")
    found: dict[str, Any] = json.loads(told.stdout)
    return {**found, "python": platform.python_version(), "machine": platform.platform()}


def _python(*words: str) -> list[str]:
    return [sys.executable, *words]


def _install(wheels: Path | None) -> Part:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return Part("install", [], 0, skipped="nothing is missing")
    if wheels is None:
        sys.exit(f"not installed: {', '.join(missing)}; name a folder of wheels with --wheels")
    files = [str(path) for path in sorted(wheels.glob("*.whl"))]
    return Part("install", _python("-m", "pip", "install", "--no-index", "--no-deps", *files), 60)


def _build(dry: bool, capability: str | None) -> Part:
    command = _python("setup.py", "-q", "build_ext", "--inplace")
    if not dry:
        for_card = (("TORCH_CUDA_ARCH_LIST", capability or ""), ("TOKENDETR_NO_CUDA", "0"))
        return Part("build", command, 180, variables=for_card)
    if any((ROOT / "tokendetr").glob("*.so")):
        return Part("build", [], 0, skipped="a dry run, and the kernels are built")
    return Part("build", command, math.inf, variables=(("TOKENDETR_NO_CUDA", "1"),))


def _sanitizer(options: argparse.Namespace, tests: list[str]) -> Part:
    tool = shutil.which("compute-sanitizer")
    if options.dry_run or tool is None:
        reason = "a dry run" if options.dry_run else "compute-sanitizer is not on the PATH"
        return Part("sanitizer", [], 0, skipped=reason)
    few = ["-k", "not_aligned or not_finite"]
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9"]
    return Part("sanitizer", [*command, *_python("-m", "pytest", "-x", *tests, *few)], 90)


def parts(options: argparse.Namespace, capability: str | None, folder: Path) -> list[Part]:
    """Return all parts for this machine; those of a dry run have no limits of their own."""
    dry = options.dry_run
    device = ["--device", "cpu" if dry else "cuda"]
    least = ["--repeats", "2", "--dtypes", "float32"] if dry else []
    tests = EMULATED_TESTS if dry else CUDA_TESTS
    few = [] if dry else ["-m", "cuda"]
    deformable = ["--cases", "900", "--reference-repeats", "2", *least] if dry else []
    packed = ["--cases", "full", "bias", *least]
    detectors = ["--small", "--input-size", "64", "96", "--repeats", "1"] if dry else []

    def benchmark(name: str, script: list[str], seconds: int, *words: str) -> Part:
        results = folder / f"{name}.json"
        command = _python(*script, *device, *words, "--json", str(results))
        return Part(name, command, math.inf if dry else seconds, results)

    return [
        _install(options.wheels),
        _build(dry, capability),
        Part("tests", _python("-m", "pytest", "-q", *tests, *few), math.inf if dry else 150),
        _sanitizer(options, tests),
        benchmark("deformable attention", ["benchmarks/ms_deform_attn.py"], 90, *deformable),
        benchmark("packed attention", ["benchmarks/packed_attention.py"], 60, *packed),
        benchmark("detectors", ["-m", "benchmarks.gpu_detectors"], 120, *detectors),
    ]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a part and what it started, none of which outlives the check."""
    os.killpg(process.pid, 9)
    process.wait()


def run(part: Part, seconds: float) -> dict[str, Any]:
    """Run a part for at most so many seconds and return its record."""
    if part.skipped is not None:
        return {"status": "skipped", "reason": part.skipped}
    path = f"{ROOT}{os.pathsep}{ROOT / 'standalone'}"
    # Without ninja, which PyTorch looks for on the PATH, kernels would be compiled one by one.
    programs = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {**os.environ, "PYTHONPATH": path, "PATH": programs, **dict(part.variables)}
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=min(seconds, part.seconds))
            status = "passed" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            status, code = "out of time", None
        finally:
            if process.poll() is None:
                _end(process)
        output.seek(0)
        text = output.read().decode(errors="replace")
    record: dict[str, Any] = {"status": status, "exit code": code}
    record["seconds"] = round(time.monotonic() - started, 1)
    record["output"] = text[-4000:]
    if part.results is not None and part.results.exists():
        record["results"] = json.loads(part.results.read_text())
    return record


def check(
    chosen: list[Part],
    target: Path,
    machine: dict[str, Any],
    seconds: float,
    runner: Callable[[Part, float], dict[str, Any]] = run,
) -> dict[str, Any]:
    """Run the parts that have not passed yet, writing the record after each.

    Args:
        chosen: parts, in order.
        target: JSON file of the record; an earlier run of the same machine is carried on.
        machine: see :func:`card`.
        seconds: for all parts together.
        runner: called with a part and the seconds that are left.
    """
    earlier = json.loads(target.read_text()) if target.exists() else {}
    done = earlier.get("parts", {}) if earlier.get("machine") == machine else {}
    record = {"machine": machine, "parts": done}
    end = time.monotonic() + seconds
    for part in chosen:
        if done.get(part.name, {}).get("status") == "passed":
            continue
        left = end - time.monotonic()
        if left < 1:
            done[part.name] = {"status": "out of time", "reason": "no time was left for it"}
        else:
            print(f"{part.name} ...", flush=True)
            done[part.name] = runner(part, left)
            print(f"{part.name}: {done[part.name]['status']}", flush=True)
        unfinished = target.with_suffix(".part")
        unfinished.write_text(json.dumps(record, indent=1))
        unfinished.replace(target)
        if part.name == "build" and done[part.name]["status"] not in ("passed", "skipped"):
            print(done[part.name].get("output", ""))
            break
    return record


def main() -> None:
    """Run the check; the exit status is 0 if no part failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--minutes", type=float, default=9, help="for all parts together")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="see gpu_wheels.py")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU, emulated and small")
    options = parser.parse_args()
    machine = card()
    if machine["capability"] is None and not options.dry_run:
        sys.exit("not run: PyTorch sees no CUDA device (--dry-run does without)")
    with tempfile.TemporaryDirectory() as folder:
        known = parts(options, machine["capability"], Path(folder))
        names = [part.name for part in known]
        if unknown := set(options.parts or []) - set(names):
            parser.error(f"no part is called {', '.join(sorted(unknown))}: {', '.join(names)}")
        chosen = [part for part in known if not options.parts or part.name in options.parts]
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = check(chosen, options.json, machine, options.minutes * 60)
    bad = [n for n, x in record["parts"].items() if x["status"] not in ("passed", "skipped")]
    if bad:
        sys.exit(f"not passed: {', '.join(bad)}; see {options.json}")


if __name__ == "__main__":
    main()
