"""The check for machines with a GPU: its bookkeeping, and a dry run."""

import json
import runpy
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.patience import patience
from tests.source_tree import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_check.py"
MACHINE = {"card": "a card"}


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def test_a_run_goes_on_with_what_has_not_passed(script, tmp_path: Path) -> None:
    chosen = [script["Part"](name, [], 9) for name in ("tests", "one", "two")]
    target, called = tmp_path / "record.json", []

    def runner(part, left):
        called.append(part.name)
        return {"status": "failed" if part.name == "one" and len(called) < 4 else "passed"}

    script["check"](chosen, target, MACHINE, 60, runner)
    assert json.loads(target.read_text())["parts"]["one"]["status"] == "failed"
    script["check"](chosen, target, MACHINE, 60, runner)
    assert called == ["tests", "one", "two", "one"]
    assert {x["status"] for x in json.loads(target.read_text())["parts"].values()} == {"passed"}
    script["check"](chosen, target, {"card": "another"}, 60, runner)
    assert called[4:] == ["tests", "one", "two"]


def test_nothing_runs_on_a_build_that_failed_or_without_time(script, tmp_path: Path) -> None:
    chosen = [script["Part"](name, [], 9) for name in ("build", "tests")]
    record = script["check"](
        chosen, tmp_path / "a.json", MACHINE, 60, lambda part, left: {"status": "failed"}
    )
    assert list(record["parts"]) == ["build"]
    record = script["check"](chosen, tmp_path / "b.json", MACHINE, 0, lambda part, left: 1 / 0)
    assert {n: x["status"] for n, x in record["parts"].items()} == {"build": "out of time"}


def test_a_part_is_ended_in_time_and_keeps_its_output(script, tmp_path: Path) -> None:
    code = "import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    part = script["Part"]("slow", [sys.executable, "-c", code], 60)
    started = time.monotonic()
    record = script["run"](part, 3)
    assert time.monotonic() - started < patience(15)
    assert record["status"] == "out of time"
    results = tmp_path / "x.json"
    code = f"open({str(results)!r}, 'w').write('[1]'); raise SystemExit(3)"
    record = script["run"](script["Part"]("x", [sys.executable, "-c", code], 60, results), 60)
    assert (record["status"], record["exit code"], record["results"]) == ("failed", 3, [1])


def test_the_bundle_has_what_the_check_reads_and_the_wheels_that_are_missing_there(tmp_path: Path):
    script = runpy.run_path(str(SCRIPT.with_name("gpu_wheels.py")))
    frozen = "SciPy==1.17.1\npytest_timeout @ file:///x.whl\n# editable\npillow==13.0.0\n"
    there = script["names_of"](frozen)
    assert there == {"scipy", "pytest-timeout", "pillow"}
    missing = {package.partition("==")[0] for package in script["pinned"](there)}
    assert "fvcore" in missing and not missing & there
    (tmp_path / "fvcore-1-py3-none-any.whl").write_bytes(b"a wheel")
    script["write_bundle"](tmp_path / "bundle.tar", tmp_path)
    with tarfile.open(tmp_path / "bundle.tar") as archive:
        names = set(archive.getnames())
    assert "build/gpu-wheels/fvcore-1-py3-none-any.whl" in names
    assert {"benchmarks/gpu_check.py", "csrc/module.cpp", "tests/ops/test_cuda.py"} <= names
    assert not any(name.endswith(".safetensors") for name in names)
    # With 45 MiB of wheels, the most that a bare machine needs, the whole stays below 60.
    assert (tmp_path / "bundle.tar").stat().st_size < 12 * 2**20


@pytest.mark.slow
@pytest.mark.timeout(0)  # --minutes ends it
def test_dry_run(tmp_path: Path) -> None:
    target = tmp_path / "record.json"
    minutes = str(patience(900) / 60)
    command = [sys.executable, str(SCRIPT), "--dry-run", "--minutes", minutes]
    command += ["--json", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    parts = json.loads(target.read_text())["parts"]
    assert done.returncode == 0, {n: x.get("output") for n, x in parts.items()}
    assert [n for n, x in parts.items() if x["status"] == "skipped"] == [
        "install",
        "build",
        "sanitizer",
    ]
    detectors = parts["detectors"]["results"]
    assert set(detectors) == {"DINO", "Dynamic-DINO", "SPT-DINO"}
    assert all(set(dtypes) == {"float32", "bfloat16"} for dtypes in detectors.values())
    assert parts["deformable attention"]["results"]["lines"]
    assert parts["packed attention"]["results"]["lines"]
