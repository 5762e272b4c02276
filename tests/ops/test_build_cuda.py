"""The CUDA half: what setup.py asks nvcc and the linker for, and a library that loads."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops import cuda_builds
from tests.patience import patience

RELEASE = "Cuda compilation tools, release 13.0, V13.0.88"
RECORDER = f"""#!/bin/sh
case "$*" in
  *--version*) echo '{RELEASE}'; exit;;
  *--dryrun*) exit;;
esac
echo "$0 $*" >> "$RECORD"
while [ $# -gt 0 ]; do
  [ "$1" = -o ] && output="$2"
  shift
done
exec c++ -x c++ -c -fPIC /dev/null -o "$output"
"""


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("TOKENDETR_", "CUDA", "TORCH_CUDA", "CXX", "CC", "NVCC")):
            monkeypatch.delenv(name)


def recording_toolkit(folder: Path) -> Path:
    """A CUDA toolkit whose nvcc notes its command and makes an empty object."""
    home = folder / "toolkit"
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    (home / "lib64").mkdir()
    (home / "include" / "cuda_runtime_api.h").touch()
    (home / "bin" / "nvcc").write_text(RECORDER)
    (home / "bin" / "nvcc").chmod(0o755)
    return home


def test_the_command_lines_of_the_cuda_half(tmp_path):
    tree, home = cuda_builds.copy_tree(tmp_path), recording_toolkit(tmp_path)
    for source in tree.rglob("*.cpp"):
        source.write_text("")
    for source in tree.rglob("*.cu"):
        source.write_text("")
    record = tmp_path / "record"
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\necho "c++ $*" >> "$RECORD"\nexec /usr/bin/env c++ "$@"\n')
    compiler.chmod(0o755)
    libraries = cuda_builds.stand_in_libraries(tmp_path / "libraries", "cudart")
    cuda_builds.build(
        tree, libraries, 60, CUDA_HOME=str(home), CXX=str(compiler), RECORD=str(record)
    )
    facts = cuda_builds.noted(tree)
    assert (facts["cuda"], facts["architectures"], facts["left_out"]) == ("13.0", "8.0;9.0+PTX", {})
    lines = record.read_text().splitlines()
    sources = sorted(path.relative_to(tree) for path in (tree / "csrc").rglob("*.cu"))
    kernels = [line for line in lines if "/bin/nvcc" in line and " -c " in line and "csrc" in line]
    compiled = sorted(source for source in sources if any(str(source) in line for line in kernels))
    assert compiled == sources and len(kernels) == len(sources)
    wanted = ["-O3", "-std=c++17", "-lineinfo", "-DTOKENDETR_WITH_CUDA", f"-I{home / 'include'}"]
    wanted += ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90"]
    wanted += ["arch=compute_90,code=compute_90"]
    for line in kernels:
        assert [word for word in wanted if word not in line] == []
    hosts = [line for line in lines if line.startswith("c++") and "csrc" in line and " -c " in line]
    assert sum("cuda/ops" in line for line in hosts) == 2
    assert all("-DTOKENDETR_WITH_CUDA" in line for line in hosts)
    (link,) = [line for line in lines if "-shared" in line and "libtokendetr_ops.so" in line]
    assert [word for word in ("-lcudart", "-lc10_cuda", "-ltorch_cuda") if word not in link] == []
    assert "-ltorch_python" not in link


LOAD = """
import sys, torch
torch.ops.load_library(sys.argv[1])
for name in ("ms_deform_attn", "ms_deform_attn_fused_backward", "packed_attention"):
    full = f"tokendetr::{name}"
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(full, key), (full, key)
sys.path.insert(0, sys.argv[2])
from tokendetr.ops import library_facts, ms_deform_attn, use_reference
facts = library_facts()
assert facts.load_error is None and "cuda" in facts.device_types, facts
x, points = torch.rand(1, 4, 1, 8), torch.rand(1, 3, 1, 1, 2, 2)
weights = torch.full((1, 3, 1, 1, 2), 0.5)
one = ms_deform_attn(x, ((2, 2),), points, weights)
with use_reference():
    torch.testing.assert_close(one, ms_deform_attn(x, ((2, 2),), points, weights))
print("loaded", facts.architectures)
"""


@pytest.mark.slow
@pytest.mark.timeout(0)  # the build has a limit that allows for load
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_cuda_half_compiles_links_and_loads(tmp_path):
    """Link the real kernels against libraries that stand in for PyTorch's CUDA half.

    That half is several GB. The kernels are built for one architecture; without a GPU they are
    registered and not called.
    """
    tree = cuda_builds.copy_tree(tmp_path)
    libraries = cuda_builds.stand_in_libraries(tmp_path / "libraries")
    cuda_builds.build(tree, libraries, 900, TORCH_CUDA_ARCH_LIST="9.0", TOKENDETR_NO_CUDA="0")
    facts = cuda_builds.noted(tree)
    assert facts["cuda"] and facts["architectures"] == "9.0"
    setup = runpy.run_path(str(cuda_builds.ROOT / "csrc" / "setup" / "toolchain.py"))
    runtime = setup["_home_of"](setup["_nvcc"]()) / "lib64"
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, str(tree / cuda_builds.LIBRARY), str(tree)],
        env={**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{runtime}"},
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.strip() == "loaded 9.0"
