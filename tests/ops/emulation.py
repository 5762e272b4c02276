"""Compile CUDA kernels for the CPU; cuda_emulation/emulated_device.h stands for the device."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
STORAGE = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def compiled_emulation(source: str, kernels: str, folder: Path) -> Path:
    """Return the library of a source in ``cuda_emulation`` on the kernels of an operator."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip("needs a C++ compiler")
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the address sanitizer does not follow a warp's lanes from stack to stack")
    path = folder / "kernels.so"
    here = Path(__file__).with_name("cuda_emulation")
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-U_FORTIFY_SOURCE",
        "-shared",
        "-fPIC",
        "-Wno-unknown-pragmas",
    ]
    folders = [f"-I{here}", f"-I{ROOT / 'csrc' / kernels / 'cuda'}"]
    subprocess.run([*command, *folders, str(here / source), "-o", str(path)], check=True)
    return path


def pointer(tensor):
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def pointers(*tensors):
    return (ctypes.c_void_p * len(tensors))(*[None if x is None else x.data_ptr() for x in tensors])


def numbers(values):
    return (ctypes.c_int64 * len(values))(*values)
