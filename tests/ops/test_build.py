"""Builds without a compiler or CUDA: their products, and one line for each missing part."""

import json
import os
import runpy
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.ops.cuda_builds import LIBRARY, ROOT, copy_tree
from tests.patience import patience

TOOLCHAIN = runpy.run_path(str(ROOT / "csrc" / "setup" / "toolchain.py"))
Missing, find_toolkit, switch = (TOOLCHAIN[x] for x in ("Missing", "find_toolkit", "switch"))
RELEASE = "Cuda compilation tools, release 13.0, V13.0.88"


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch) -> None:
    for name in list(os.environ):
        if name.startswith(("TOKENDETR_", "CUDA", "TORCH_CUDA", "CXX", "CC")):
            monkeypatch.delenv(name)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a checkout that builds quickly, in a folder with a space."""
    folder = copy_tree(tmp_path)
    for source in [*folder.rglob("*.cpp"), *folder.rglob("*.cu")]:
        source.unlink()
    (folder / "csrc" / "module.cpp").write_text('#include "common/stable_abi.h"\nint x = 1;\n')
    return folder


def build(tree: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tree,
        env=dict(os.environ) | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=patience(60),
    )


def lines_of(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stdout.splitlines() if line.startswith("tokendetr:")]


def noted(tree: Path) -> dict:
    return json.loads((tree / LIBRARY).with_suffix(".json").read_text())


CALL = """
import torch
from tokendetr.ops import ms_deform_attn
for _ in range(2):
    x = torch.rand(1, 4, 1, 2)
    locations, weights = torch.rand(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1)
    print(ms_deform_attn(x, ((2, 2),), locations, weights).shape)
"""


def test_without_a_compiler_the_install_succeeds_and_both_ends_say_why(tree: Path) -> None:
    (tree / LIBRARY).write_bytes(b"of an earlier build")
    result = build(tree, CXX="/absent/c++")
    assert result.returncode == 0, result.stdout
    (line,) = lines_of(result)
    assert "/absent/c++" in line
    assert not (tree / LIBRARY).exists()
    used = subprocess.run(
        [sys.executable, "-c", CALL],
        cwd=tree,
        env=dict(os.environ) | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=patience(30),
    )
    assert used.stdout.count("torch.Size([1, 1, 2])") == 2, used.stderr
    assert used.stderr.count("/absent/c++") == 1


def test_a_switch_that_is_off_requires_what_it_would_leave_out(tree: Path) -> None:
    result = build(tree, CXX="/absent/c++", TOKENDETR_NO_EXTENSION="false")
    assert result.returncode != 0
    assert "/absent/c++" in result.stdout
    assert "TOKENDETR_NO_EXTENSION=1" in result.stdout


def test_a_switch_takes_the_usual_words_and_no_others(monkeypatch) -> None:
    assert switch("TOKENDETR_NO_CUDA") is None
    for text, value in [
        ("", None),
        ("0", False),
        ("False", False),
        (" no ", False),
        ("OFF", False),
    ]:
        monkeypatch.setenv("TOKENDETR_NO_CUDA", text)
        assert switch("TOKENDETR_NO_CUDA") is value
    for text in ("1", "true", "YES", "on"):
        monkeypatch.setenv("TOKENDETR_NO_CUDA", text)
        assert switch("TOKENDETR_NO_CUDA") is True
    monkeypatch.setenv("TOKENDETR_NO_CUDA", "flase")
    with pytest.raises(SystemExit, match="TOKENDETR_NO_CUDA=flase"):
        switch("TOKENDETR_NO_CUDA")


def cuda_torch(version: str | None) -> SimpleNamespace:
    return SimpleNamespace(
        __version__="2.13.0",
        version=SimpleNamespace(cuda=version),
        cuda=SimpleNamespace(is_available=lambda: False),
    )


def toolkit(folder: Path, *, version: str = f"echo '{RELEASE}'", compiles: str = ":") -> Path:
    """Make a CUDA toolkit whose nvcc is a shell script; no headers."""
    nvcc = folder / "half a toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    script = f'case "$*" in *--version*) {version};; *--dryrun*) :;; *) {compiles};; esac'
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    return nvcc.parent.parent


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"version": "exit 3"}, "does not run"),
        ({"version": 'echo "release 11.8, V11.8.1"'}, "major versions must agree"),
        ({}, "cuda_runtime_api.h"),
        ({"compiles": 'echo "nvcc fatal error: gcc is too new" >&2; exit 1'}, "gcc is too new"),
    ],
    ids=["broken", "another version", "no headers", "does not compile"],
)
def test_half_a_cuda_toolkit_is_named(monkeypatch, tmp_path: Path, parts, reason) -> None:
    home = toolkit(tmp_path, **parts)
    if "compiles" in parts:
        (home / "include").mkdir()
        (home / "include" / "cuda_runtime_api.h").touch()
    monkeypatch.setenv("CUDA_HOME", str(home))
    with pytest.raises(Missing, match=reason):
        find_toolkit(cuda_torch("13.0"))


def test_a_whole_toolkit_is_found_through_a_wrapper(monkeypatch, tmp_path: Path) -> None:
    home = toolkit(tmp_path)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime_api.h").touch()
    wrapper = tmp_path / "wrapper" / "nvcc"
    wrapper.parent.mkdir()
    script = (
        f'case "$*" in *--dryrun*) echo "#$ TOP={home}";; *) exec "{home}/bin/nvcc" "$@";; esac'
    )
    wrapper.write_text(f"#!/bin/sh\n{script}\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(wrapper.parent), prepend=os.pathsep)
    found = find_toolkit(cuda_torch("13.1"))
    assert (found.home, found.version) == (home, "13.0")


def test_other_reasons_against_cuda_kernels_are_named(monkeypatch, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="not a CUDA build"):
        find_toolkit(cuda_torch(None))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(Missing, match="no bin/nvcc"):
        find_toolkit(cuda_torch("13.0"))
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path)))
    old = cuda_torch("13.0")
    old.cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 1, get_device_capability=lambda _: (7, 5)
    )
    with pytest.raises(Missing, match=r"8\.0.*7\.5"):
        find_toolkit(old)


@pytest.mark.slow
def test_kernels_in_a_path_with_spaces(tree: Path) -> None:
    result = build(tree)
    assert result.returncode == 0, result.stdout
    assert (tree / LIBRARY).exists()
    assert noted(tree)["torch"]
    assert build(tree, TOKENDETR_NO_EXTENSION="yes").returncode == 0
    assert not (tree / LIBRARY).exists()
    assert "TOKENDETR_NO_EXTENSION" in noted(tree)["left_out"]["kernels"]
