"""Rows that the test suite holds already: each case is one of its files, slow tests included."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.reliability.campaign import ROOT, row

SUITE: dict[str, tuple[str, str, Sequence[str]]] = {
    "OP1": (
        "operators against float64 oracles, forward and backward",
        "float64 1e-12, float32 2e-5 of the largest value",
        ("tests/ops/test_forward.py", "tests/ops/test_backward.py",
         "tests/ops/test_packed_forward.py", "tests/ops/test_packed_backward.py"),
    ),
    "OP5": (
        "hostile arguments of the operators",
        "an error that names the argument",
        ("tests/ops/test_arguments.py", "tests/ops/test_packed_arguments.py"),
    ),
    "TK1": (
        "laws of token maps: restore, conserved sums, rows that sum to 1, padding",
        "exact, or 1e-6",
        ("tests/tokens",),
    ),
    "MD1": (
        "every method on every detector: forward, backward, evaluation, reload",
        "0 failures",
        ("tests/projects/test_zoo_contract.py", "tests/projects/test_detectors.py"),
    ),
    "MD2": (
        "recorded numbers of the published codes",
        "the golden files' bounds",
        ("tests/projects/test_golden.py",),
    ),
}  # fmt: skip


def _suite_case(paths: Sequence[str]):
    def case(seed: int, folder: Path) -> int:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(seed)}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "not cuda", "-p", "no:cacheprovider",
             f"--basetemp={folder / 'pytest'}", *paths],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        tail = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]
        if done.returncode:
            failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
            raise AssertionError("; ".join(failed[:3]) or tail)
        return int(tail.split(" passed")[0].split()[-1])

    return case


for _name, (_what, _target, _paths) in SUITE.items():
    row(_name, _what, target=_target, default=0, nightly=1, unit="tests")(_suite_case(_paths))
