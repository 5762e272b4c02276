"""Build of the distribution ``tokendetr``; the metadata is in pyproject.toml.

The folder ``projects/`` is installed inside the package, as ``tokendetr/projects/``: there no other
package of that name can be mixed with it.

The compiled extension is ``tokendetr._C``. Nothing is downloaded. CUDA kernels are added where
PyTorch has CUDA and a toolkit is found.
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
from setuptools.command.build_py import build_py
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

SOURCES = Path("csrc")
PROJECTS = Path("projects")
PROJECT_FILES = (".md", ".py", ".safetensors")


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


class BuildWithProjects(build_py):
    """Add the projects to the package, and the ``.pth`` file beside it, where Python reads it."""

    def run(self) -> None:
        """Build the packages, then copy the rest; an editable install reads projects in place."""
        super().run()
        if self.editable_mode:
            self.copy_file("tokendetr.pth", self.get_finalized_command("install").install_lib)
            return
        self.copy_file("tokendetr.pth", self.build_lib)
        for path in sorted(PROJECTS.rglob("*")):
            if path.suffix in PROJECT_FILES:
                target = Path(self.build_lib, "tokendetr", path)
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension, "build_py": BuildWithProjects},
)
