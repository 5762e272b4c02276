"""The operators on random problems: values, gradients, odd input, the same bits every time."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from tests.ops import checks
from tests.ops.cases import gradients as gradients_of
from tests.ops.cases import random_case, relative
from tests.ops.packed_cases import packed_oracle, random_packed
from tests.reliability.campaign import ROOT, Unavailable, row
from tokendetr.ops import ms_deform_attn

WIDTHS = (1, 30, 32, 64, 71, 1025)
SANITIZED = sorted(
    f"tests/ops/{path.name}"
    for path in (ROOT / "tests" / "ops").glob("test_*.py")
    if not path.stem.startswith(("test_build", "test_cuda", "test_large", "test_other_torch"))
)


def seeds_of(case: int, count: int) -> range:
    """The problems of a case: no two cases share one."""
    return range(1 + case * count, 1 + (case + 1) * count)


@row(
    "OP1",
    "both operators against float64 oracles",
    target="float64 1e-12; float32 2e-5, bfloat16 2e-2 of the largest value",
    default=1,
    nightly=200,
    unit="problems",
)
def values(seed: int, folder: Path) -> int:
    checks.check_against_oracle(seeds_of(seed, 80))
    for packed_seed in seeds_of(seed, 20):
        case = random_packed(packed_seed)
        expected = packed_oracle(case)
        assert relative(case.run(), expected) <= 1e-12, packed_seed
        assert relative(case.to(torch.float32).run(), expected) <= 2e-5, packed_seed
    return 100


@row(
    "OP2",
    "bfloat16 and float16 against PyTorch in the same precision",
    target="at most twice PyTorch's error, + 1e-5",
    default=1,
    nightly=40,
    unit="problems",
)
def low_precision(seed: int, folder: Path) -> int:
    dtype = (torch.bfloat16, torch.float16)[seed % 2]
    checks.check_half_precision(dtype, seeds_of(seed, 50))
    return 50


@row(
    "OP3",
    "gradcheck in float64 of all inputs, 1e-3 pixels off the kinks; 1 to 1025 channels",
    target="0 failures",
    default=1,
    nightly=60,
    unit="problems",
)
def gradients(seed: int, folder: Path) -> int:
    checks.check_gradients(WIDTHS[seed % len(WIDTHS)], seeds_of(seed, 5))
    return 5


@row(
    "OP6",
    "NaN, infinity and 1e38 in locations, values and weights",
    target="such a location counts nothing; such values reach exactly what samples them",
    default=1,
    nightly=32,
    unit="problems",
)
def not_finite(seed: int, folder: Path) -> int:
    for dtype in (torch.float64, torch.float32):
        checks.check_odd_locations(dtype, seeds_of(seed, 8))
    checks.check_poisoned(seeds_of(seed, 8))
    return 24


@row(
    "OP7",
    "the operators' tests on a build with address and undefined-behavior sanitizers",
    target="0 reports",
    default=0,
    nightly=len(SANITIZED),
    unit="tests",
)
def sanitizers(seed: int, folder: Path) -> int:
    """The tests of one file; the build is made by the first case."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise Unavailable("needs a compiler")
    done = subprocess.run(
        ["sh", "csrc/sanitize.sh"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "TESTS": SANITIZED[seed]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout[-2000:]
    return int(passed[1])


@row(
    "OP9",
    "forward and backward of one problem again, on other numbers of threads",
    target="bit for bit",
    default=1,
    nightly=25,
    unit="problems",
)
def same_bits(seed: int, folder: Path) -> int:
    threads = torch.get_num_threads()
    try:
        for problem in seeds_of(seed, 10):
            case = random_case(problem, dtype=torch.float32)
            heads = case.value.shape[2] * case.value.shape[3]
            grad = torch.randn(*case.locations.shape[:2], heads)

            def run(*x, shapes=case.shapes):
                return ms_deform_attn(x[0], shapes, *x[1:])

            found = []
            for count in (1, 2, 3, 1):
                torch.set_num_threads(count)
                found.append([run(*case.tensors), *gradients_of(run, case.tensors, grad)])
            for other in found[1:]:
                assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True)), problem
    finally:
        torch.set_num_threads(threads)
    return 10
