"""Search for what a build needs, and one line that says what is missing.

Nothing here is guessed from a version: a small file is compiled and linked in the way that the
kernels will be.
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ON = ("1", "true", "yes", "on")
OFF = ("0", "false", "no", "off")
OLDEST_TORCH = (2, 10)
OLDEST_CARD = (8, 0)

CUDA_PROBE = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
__global__ void probe(float* x) { *x = 0; }
cudaError_t run(float* x) { probe<<<1, 1>>>(x); return cudaGetLastError(); }
"""
HOST_PROBE = """
#include "common/stable_abi.h"
int main() { return 0; }
"""


class Missing(Exception):
    """Reason, in one line, why something cannot be built."""


def switch(name: str) -> bool | None:
    """Return whether an environment switch is on or off, or None if it is not set.

    Raises:
        SystemExit: for another text, naming the variable and what it may be.
    """
    text = os.environ.get(name, "").strip().lower()
    if not text:
        return None
    if text not in (*ON, *OFF):
        known = ", ".join((*ON, *OFF))
        raise SystemExit(f"setup.py: {name}={os.environ[name]} is none of {known}")
    return text in ON


def _run(command: list[str], what: str) -> str:
    """Return a command's output. If it fails, raise Missing with the first error line of it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise Missing(f"{what}: {command[0]} cannot be run ({error.strerror})") from None
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        complaint = next((x for x in lines if "error" in x.lower()), (lines or ["no output"])[0])
        raise Missing(f"{what}: {complaint[:300]}")
    return done.stdout + done.stderr


def compiler() -> list[str]:
    """Return the command of the C++ compiler, which CXX may name."""
    return os.environ.get("CXX", "c++").split() or ["c++"]


def check_host(torch: Any, sources: Path) -> None:
    """Compile a file that includes PyTorch's stable headers.

    Raises:
        Missing: naming the compiler, or what it said.
    """
    version = tuple(int(x) for x in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        wanted = ".".join(map(str, OLDEST_TORCH))
        raise Missing(f"PyTorch {torch.__version__} is older than {wanted}, whose ABI is used")
    command = compiler()
    if shutil.which(command[0]) is None:
        raise Missing(
            f"no C++ compiler: {command[0]!r} is not on the PATH "
            "(Debian: apt-get install g++; CXX names another one)"
        )
    headers = Path(torch.__file__).with_name("include")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(HOST_PROBE)
        flags = ["-std=c++17", "-fPIC", "-shared", f"-I{sources}", f"-I{headers}"]
        _run(
            [*command, *flags, str(source), "-o", str(source.with_suffix(".so"))],
            "the C++ compiler fails",
        )


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that compiled and linked the probe."""

    home: Path
    include: Path
    version: str


def _nvcc() -> Path:
    """Return nvcc of CUDA_HOME or CUDA_PATH, of the PATH, or of the usual folder."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(name):
            nvcc = Path(home) / "bin" / "nvcc"
            if not nvcc.exists():
                raise Missing(f"{name} is {home}, which has no bin/nvcc")
            return nvcc
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        raise Missing("no nvcc in CUDA_HOME, on the PATH or in /usr/local/cuda")
    return Path(found)


def _home_of(nvcc: Path) -> Path:
    """Return the toolkit's root, which nvcc knows even if it was called through a wrapper."""
    listed = _run([str(nvcc), "--dryrun", "-c", "probe.cu"], f"{nvcc} does not run")
    named = re.search(r"TOP=(\S.*)", listed)
    home = Path(named[1].strip()) if named else nvcc.resolve().parent.parent
    return home.resolve() if (home / "bin" / "nvcc").exists() else nvcc.parent.parent


def _include_of(home: Path) -> Path:
    for folder in (home / "include", *sorted(home.glob("targets/*/include"))):
        if (folder / "cuda_runtime_api.h").exists():
            return folder
    raise Missing(f"the CUDA toolkit in {home} has no header cuda_runtime_api.h")


def _check_cards(torch: Any) -> None:
    if os.environ.get("TORCH_CUDA_ARCH_LIST") or not torch.cuda.is_available():
        return
    cards = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    if cards and max(cards) < OLDEST_CARD:
        best = ".".join(map(str, max(cards)))
        raise Missing(f"the kernels need compute capability 8.0, this machine's GPU has {best}")


def find_toolkit(torch: Any) -> Toolkit:
    """Return a CUDA toolkit that works for this PyTorch.

    Raises:
        Missing: saying what is not there, does not run or does not match.
    """
    if torch.version.cuda is None:
        raise Missing(f"PyTorch {torch.__version__} is not a CUDA build")
    nvcc = _nvcc()
    told = _run([str(nvcc), "--version"], f"{nvcc} does not run")
    release = re.search(r"release (\d+\.\d+)", told)
    if release is None:
        raise Missing(f"{nvcc} does not say its version")
    version = release[1]
    if version.split(".")[0] != torch.version.cuda.split(".")[0]:
        raise Missing(
            f"nvcc is of CUDA {version}, PyTorch {torch.__version__} of CUDA {torch.version.cuda}: "
            "their major versions must agree"
        )
    _check_cards(torch)
    home = _home_of(nvcc)
    toolkit = Toolkit(home, _include_of(home), version)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cu"
        source.write_text(CUDA_PROBE)
        host = ["-ccbin", os.environ["CC"]] if os.environ.get("CC") else []
        flags = ["-std=c++17", "-shared", "-Xcompiler", "-fPIC", "--cudart", "shared", *host]
        _run(
            [str(home / "bin" / "nvcc"), *flags, str(source), "-o", str(source.with_suffix(".so"))],
            f"the CUDA toolkit in {home} does not compile",
        )
    return toolkit
