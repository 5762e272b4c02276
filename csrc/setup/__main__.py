"""Build of the operators' library, ``tokendetr/libtokendetr_ops.so``, for setup.py.

The library has no Python symbols and uses PyTorch's stable ABI alone, so one build serves every
Python and every later PyTorch. What is missing for the CUDA kernels, or for all of them, does not
stop an installation: the reason is printed, and written beside the library for the first call of an
operator to repeat.

Environment:

* ``TOKENDETR_NO_EXTENSION=1``: install without the library (plain PyTorch runs, slower);
* ``TOKENDETR_NO_CUDA=1``: leave the CUDA kernels out;
* either of them ``=0``: what it leaves out is required, and the build stops if it cannot be made;
* ``TORCH_CUDA_ARCH_LIST``: CUDA architectures, by default 8.0, 9.0 and PTX of the latter;
* ``CXX``, ``CUDA_HOME``: the C++ compiler and the CUDA toolkit;
* ``TOKENDETR_SANITIZE=1``: instrument with the address and undefined behavior sanitizers
  (``make sanitize``).
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension
from toolchain import Missing, Toolkit, check_host, compiler, find_toolkit, switch

try:
    import torch
except ImportError as error:
    torch = None
    TORCH_ERROR = str(error)

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    from wheel.bdist_wheel import bdist_wheel

SOURCES = Path("csrc")
NAME = "tokendetr.libtokendetr_ops"
ARCHITECTURES = "8.0;9.0+PTX"


def _say(text: str) -> None:
    print(f"tokendetr: {text}", file=sys.stderr, flush=True)


class Plan:
    """Parts that this machine can build, and the reason why any other part is left out."""

    def __init__(self) -> None:
        self.kernels = False
        self.toolkit: Toolkit | None = None
        self.left_out: dict[str, str] = {}
        wanted, cuda = switch("TOKENDETR_NO_EXTENSION"), switch("TOKENDETR_NO_CUDA")
        if wanted:
            self.left_out["kernels"] = "TOKENDETR_NO_EXTENSION was set when it was built"
            return
        try:
            if torch is None:
                raise Missing(
                    f"PyTorch was not there when it was built ({TORCH_ERROR}); "
                    "use pip install --no-build-isolation"
                )
            check_host(torch, SOURCES)
            self.kernels = True
        except Missing as error:
            self._leave_out("kernels", str(error), required=wanted is False or cuda is False)
            return
        try:
            if cuda:
                raise Missing("TOKENDETR_NO_CUDA was set when it was built")
            self.toolkit = find_toolkit(torch)
        except Missing as error:
            self._leave_out("cuda", str(error), required=cuda is False)

    def _leave_out(self, what: str, reason: str, *, required: bool) -> None:
        name = {"kernels": "TOKENDETR_NO_EXTENSION", "cuda": "TOKENDETR_NO_CUDA"}[what]
        if required:
            raise SystemExit(
                f"setup.py: {reason}. Set {name}=1 to go without, or leave it and its like unset "
                "to build what this machine can."
            )
        self.left_out[what] = reason

    def announce(self) -> None:
        """Print one line on what is left out that was not left out on purpose."""
        if "kernels" in self.left_out:
            _say(f"built without compiled kernels: {self.left_out['kernels']}")
        elif torch.version.cuda is not None and "cuda" in self.left_out:
            _say(f"built with CPU kernels alone: {self.left_out['cuda']}")

    def facts(self) -> dict[str, Any]:
        """Return what ``tokendetr.ops.library_facts`` tells about this build."""
        return {
            "torch": torch.__version__ if self.kernels else None,
            "cuda": self.toolkit.version if self.toolkit else None,
            "architectures": os.environ["TORCH_CUDA_ARCH_LIST"] if self.toolkit else None,
            "compiler": " ".join(compiler()) if self.kernels else None,
            "left_out": self.left_out,
        }

    def extension(self) -> Extension:
        """Describe the library for PyTorch's build command."""
        from torch.utils.cpp_extension import CppExtension, CUDAExtension

        host = ["-O3", "-g0", "-std=c++17", "-ffp-contract=fast", "-Wall", "-Wno-psabi"]
        host += ["-fvisibility=hidden"]
        link: list[str] = []
        if switch("TOKENDETR_SANITIZE"):
            sanitizers = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g"]
            host += [*sanitizers, "-fno-sanitize-recover=all", "-O1"]
            link = sanitizers
        elsewhere = {"cuda", "openvino", "onnxruntime"}
        sources = [x for x in sorted(SOURCES.rglob("*.cpp")) if not elsewhere & {*x.parts}]
        options: dict[str, Any] = {"extra_link_args": link, "py_limited_api": True}
        if self.toolkit is None:
            files = [str(x) for x in sources]
            return CppExtension(NAME, files, extra_compile_args={"cxx": host}, **options)
        for suffix in ("cpp", "cu"):
            sources += [x for x in sorted(SOURCES.rglob(f"*.{suffix}")) if "cuda" in x.parts]
        return CUDAExtension(
            NAME,
            [str(x) for x in sources],
            include_dirs=[str(self.toolkit.include)],
            define_macros=[("TOKENDETR_WITH_CUDA", None)],
            extra_compile_args={"cxx": host, "nvcc": ["-O3", "-std=c++17", "-lineinfo"]},
            **options,
        )


def _build_command(plan: Plan) -> type:
    """Return the command that builds what was planned and notes it beside the library."""
    from setuptools.command.build_ext import build_ext

    base: type = build_ext
    if plan.toolkit is not None:
        os.environ["CUDA_HOME"] = str(plan.toolkit.home)  # read when the next module is imported
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    if plan.kernels:
        from torch.utils.cpp_extension import BuildExtension

        base = BuildExtension.with_options(no_python_abi_suffix=True)

    class BuildLibrary(base):  # type: ignore[misc, valid-type]
        def run(self) -> None:
            plan.announce()
            library = Path(self.get_ext_fullpath(NAME)).with_name("libtokendetr_ops.so")
            if plan.kernels:
                super().run()
            else:
                library.unlink(missing_ok=True)
            library.parent.mkdir(parents=True, exist_ok=True)
            library.with_suffix(".json").write_text(json.dumps(plan.facts(), indent=1) + "\n")

    return BuildLibrary


class PlatformWheel(bdist_wheel):
    """A wheel for every Python of a platform: the library has no Python symbols."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return Python, ABI and platform."""
        return "py3", "none", super().get_tag()[2]


def options() -> dict[str, Any]:
    """Return the options of ``setuptools.setup`` that build the library."""
    plan = Plan()
    command = _build_command(plan)
    return {
        "ext_modules": [plan.extension() if plan.kernels else Extension(NAME, [])],
        "cmdclass": {"build_ext": command, "bdist_wheel": PlatformWheel},
    }
