"""Build of the compiled extension ``tokendetr._C``; the metadata is in pyproject.toml.

Nothing is downloaded. CUDA kernels are added where PyTorch has CUDA and a toolkit is found.
Environment:

* ``TOKENDETR_NO_EXTENSION=1``: install without the extension (plain PyTorch runs, slower);
* ``TOKENDETR_NO_CUDA=1``: leave the CUDA kernels out;
* ``TORCH_CUDA_ARCH_LIST``: CUDA architectures, by default 8.0, 9.0 and PTX of the latter;
* ``TOKENDETR_SANITIZE=1``: instrument with the address and undefined behaviour sanitizers
  (``make sanitize``).
"""

import os
import shutil
from pathlib import Path

import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

SOURCES = Path("csrc")


def flag(name: str) -> bool:
    """Return whether an environment switch is on."""
    return os.environ.get(name, "0") not in ("", "0")


def require_compiler() -> None:
    """Stop with a clear message where there is no C++ compiler."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        raise SystemExit(
            f"setup.py: no C++ compiler: {compiler!r} is not on the PATH. "
            "Install one (Debian: apt-get install g++), name it in CXX, "
            "or set TOKENDETR_NO_EXTENSION=1 to go without the compiled kernels."
        )


def extensions() -> list[Extension]:
    """Describe the extension for this machine."""
    if flag("TOKENDETR_NO_EXTENSION"):
        return []
    require_compiler()
    with_cuda = (
        torch.version.cuda is not None and CUDA_HOME is not None and not flag("TOKENDETR_NO_CUDA")
    )
    sources = sorted(str(path) for path in SOURCES.rglob("*.cpp") if "cuda" not in path.parts)
    compile_args = [
        "-O3",
        "-g0",
        "-ffp-contract=fast",
        "-Wall",
        "-Wno-psabi",
        "-fvisibility=hidden",
    ]
    link_args: list[str] = []
    if torch.backends.openmp.is_available():
        compile_args.append("-fopenmp")
        link_args.append("-fopenmp")
    if flag("TOKENDETR_SANITIZE"):
        sanitizers = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g"]
        compile_args += [*sanitizers, "-fno-sanitize-recover=all", "-O1"]
        link_args += sanitizers
    if not with_cuda:
        return [
            CppExtension(
                "tokendetr._C", sources, extra_compile_args=compile_args, extra_link_args=link_args
            )
        ]
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    sources += sorted(
        str(path)
        for pattern in ("*.cpp", "*.cu")
        for path in SOURCES.rglob(pattern)
        if "cuda" in path.parts
    )
    return [
        CUDAExtension(
            "tokendetr._C",
            sources,
            define_macros=[("TOKENDETR_WITH_CUDA", None)],
            extra_compile_args={"cxx": compile_args, "nvcc": ["-O3", "-lineinfo"]},
            extra_link_args=link_args,
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtension})
