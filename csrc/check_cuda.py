#!/usr/bin/env python3
"""Compile every CUDA kernel for sm_80, sm_90 and PTX, and report what each takes.

Usage: csrc/check_cuda.py [word in a path ...]. Fails on a compiler error or a register spill;
without nvcc (NVCC names another one) it says that it was skipped. Kernels need no PyTorch. Where it
is installed, with or without CUDA, the files that bind them to it are checked too, by the C++
compiler (CXX names another one) with the headers of both.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
FOLDERS = (ROOT, ROOT.parent / "benchmarks")
ARCHITECTURES = (
    "arch=compute_80,code=sm_80",
    "arch=compute_90,code=sm_90",
    "arch=compute_90,code=compute_90",
)
STORAGE = {"d": "float64", "f": "float32", "Half": "float16", "BFloat": "bfloat16"}


def readable(symbol: str) -> str:
    """Return name, storage type and lanes x channels (or load width) of a mangled kernel name."""
    name = re.search(r"\d+([a-z]+_kernel)I", symbol)
    packed = re.search(
        r"4KindI[fd](?:NS\w*?\d(Half|BFloat)E|([fdS]))\w*?7StorageE\d+ELi(\d+)E", symbol
    )
    if name is not None and packed is not None:
        storage = STORAGE[packed[1] or symbol.split("4KindI")[1][0]]
        return f"packed {name[1]} {storage} loads of {packed[3]}"
    kind = re.search(
        r"4KindI[fd](?:NS\d*_\d+(Half|BFloat)E|([fd]))Li(\d+)ELi(\d+)ELi\d+ELb([01])", symbol
    )
    if name is None or kind is None:
        return plain[1] if (plain := re.search(r"\d+([a-z]+_kernel)E", symbol)) else symbol
    half, wide, lanes, vector, usual = kind.groups()
    suffix = ", usual sizes" if usual == "1" else ""
    return f"{name[1]} {STORAGE[half or wide]} {lanes} x {vector}{suffix}"


def compiled(nvcc: str, source: Path, folder: Path) -> str:
    """Compile one file and return the assembler's messages; exit with the errors if that fails."""
    command = [nvcc, "-std=c++17", "-O3", "-lineinfo", "-Xptxas", "-v"]
    for architecture in ARCHITECTURES:
        command += ["-gencode", architecture]
    command += ["-c", str(source), "-o", str(folder / f"{source.stem}.o")]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{source}:\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def kernels(log: str) -> list[tuple[str, str, int, int, int]]:
    """Return (kernel, architecture, registers, spilled, shared bytes) from the assembler's log."""
    found = []
    symbol = architecture = ""
    spilled = 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            symbol, architecture = match.groups()
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(match[1]) + int(match[2])
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found.append(
                (
                    readable(symbol),
                    architecture,
                    int(match[1]),
                    spilled,
                    int(shared[1]) if shared else 0,
                )
            )
    return found


def check_binding(nvcc: str, source: Path) -> None:
    """Check a file's types against PyTorch's and CUDA's headers; exits with the errors it has."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        print(f"{source.relative_to(ROOT.parent)}: PyTorch is not installed: not checked")
        return
    listed = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
    cuda = re.search(r"TOP=(\S+)", listed.stderr)
    headers = Path(torch.origin).with_name("include")
    folders = [headers, headers / "torch/csrc/api/include"]
    folders += [Path(cuda[1]) / "include"] if cuda else []
    command = [*os.environ.get("CXX", "c++").split(), "-std=c++20", "-fsyntax-only", "-w"]
    # A PyTorch without CUDA lacks a header that its build generates.
    command += ["-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE", *(f"-isystem{x}" for x in folders)]
    result = subprocess.run([*command, str(source)], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{source}:\n{result.stdout}{result.stderr}")
    print(f"{source.relative_to(ROOT.parent)}: agrees with PyTorch's headers")


def sources(suffix: str) -> list[Path]:
    """Return the CUDA files with a suffix, those whose path has the words of the command line."""
    found = [path for folder in FOLDERS for path in folder.rglob(f"cuda/*{suffix}")]
    return sorted(path for path in found if all(word in str(path) for word in sys.argv[1:]))


def main() -> None:
    """Compile all, print the table, fail on spills."""
    nvcc = os.environ.get("NVCC", "nvcc")
    if shutil.which(nvcc) is None:
        print("nvcc not found: skipped")
        return
    spills = 0
    print(f"{'kernel':52}{'arch':8}{'registers':>10}{'spilled':>9}{'shared':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for source in sources(".cu"):
            for name, architecture, registers, spilled, shared in kernels(
                compiled(nvcc, source, Path(folder))
            ):
                print(f"{name:52}{architecture:8}{registers:10}{spilled:9}{shared:8}", flush=True)
                spills += spilled > 0
    for source in sources(".cpp"):
        check_binding(nvcc, source)
    if spills:
        sys.exit(f"{spills} kernels spill registers")


if __name__ == "__main__":
    main()
