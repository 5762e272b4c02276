"""Builds of the CUDA half on a machine whose PyTorch has none: with libraries that stand in."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.patience import patience

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path("tokendetr") / "libtokendetr_ops.so"

# What the operators' library takes from PyTorch's CUDA libraries.
STREAM = 'extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n'
_AS_CUDA_BUILD = """
import runpy, sys, torch
torch.version.cuda = {version!r}
torch.cuda._is_compiled = lambda: True
torch.cuda.is_available = lambda: False
sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""


def copy_tree(folder: Path) -> Path:
    """What a build reads, in a folder with a space in its name."""
    tree = folder / "a check out"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    for room in ("ops", "compat"):  # the operators, and what they import
        shutil.copytree(ROOT / "tokendetr" / room, tree / "tokendetr" / room)
    (tree / "tokendetr" / "__init__.py").touch()
    shutil.copy(ROOT / "tokendetr" / "_projects.py", tree / "tokendetr")
    (tree / "projects").mkdir()  # of no method
    return tree


def stand_in_libraries(folder: Path, *others: str) -> Path:
    """Make libc10_cuda and libtorch_cuda, and others without any contents."""
    folder.mkdir()
    for name in ("c10_cuda", "torch_cuda", *others):
        source = folder / f"{name}.cpp"
        source.write_text(STREAM if name == "torch_cuda" else "")
        command = ["c++", "-shared", "-fPIC", str(source), "-o", str(folder / f"lib{name}.so")]
        subprocess.run(command, check=True)
    return folder


def build(tree: Path, libraries: Path, seconds: float, **variables: str) -> str:
    """Run setup.py as under a PyTorch of CUDA 13.0; returns what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", _AS_CUDA_BUILD.format(version="13.0")],
        cwd=tree,
        env={**os.environ, "LIBRARY_PATH": str(libraries), "MAX_JOBS": "2", **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=patience(seconds),
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    return result.stdout


def noted(tree: Path) -> dict:
    """What the build wrote beside the library."""
    return json.loads((tree / LIBRARY).with_suffix(".json").read_text())
