"""Rows that the test suite holds already: each case is some of its tests, slow ones included."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.golden.reference import FAST, SLOW
from tests.reliability.campaign import ROOT, Unavailable, row


@dataclass(frozen=True)
class Suite:
    """A row of tests.

    Attributes:
        what, target: of the row.
        cases: arguments of pytest, a case each.
        needs_gpu: they run on a GPU alone.
    """

    what: str
    target: str
    cases: Sequence[str]
    needs_gpu: bool = False


CONTRACT = "tests/projects/test_zoo_contract.py"
GOLDEN = "tests/projects/test_golden.py"
PIPELINE = "tests/projects/test_golden_pipeline.py"
LAUNCH = "tests/train/test_train_launch.py"
SUITE = {
    "MD1": Suite(
        "every method in every detector: forward, backward, evaluation, reload",
        "0 failures",
        ["tests/projects/test_detectors.py",
         *(f"{CONTRACT} -k '{tests} and {check}'" for tests in ("every_method", "listed")
           for check in ("padded_batches", "no_boxes", "sizes", "copies"))],
    ),
    "MD2": Suite(
        "recorded numbers of the published codes",
        "the golden files' bounds",
        [*(f"{PIPELINE}::test_evaluation_from_files_gives_upstreams_detections[{name}]"
           for name in (*FAST, *SLOW)),
         *(f"{GOLDEN}::test_evaluation_gives_upstreams_detections[{name}-0] "
           f"{GOLDEN}::test_evaluation_gives_upstreams_detections[{name}-1] "
           f"{GOLDEN}::test_training_gives_upstreams_losses[{name}]" for name in (*FAST, *SLOW))],
    ),
    "MD7": Suite(
        "names and shapes of every weight; the shipped weights load strictly",
        "exactly upstream's",
        ["tests/projects/test_golden.py -k state_dict", "tests/config/test_zoo.py"],
    ),
    "OP4": Suite(
        "opcheck of every operator, forward and backward",
        "0 failures",
        ["tests/ops/test_registration.py -k opcheck",
         "tests/ops/test_packed_registration.py -k opcheck"],
    ),
    "OP5": Suite(
        "hostile arguments of the operators",
        "an error that names the argument",
        ["tests/ops/test_arguments.py", "tests/ops/test_packed_arguments.py"],
    ),
    "OP8": Suite(
        "tensors of more than 2^31 elements",
        "as two calls of half the size",
        [f"tests/ops/test_large.py::{name}" for name in (
            "test_value_of_more_than_two_to_the_31_elements",
            "test_gradient_of_more_than_two_to_the_31_elements",
            "test_output_of_more_than_two_to_the_31_elements",
        )],
    ),
    "OP10": Suite(
        "a kernel launch that fails",
        "an error, never a message beside a wrong result",
        ["tests/ops/test_cuda.py -k failed_launch"],
        needs_gpu=True,
    ),
    "SE3": Suite(
        "releases and hashes of all requirements; what the wheels hold",
        "0 findings",
        ["tests/packaging/test_requirements.py", "tests/packaging/test_wheel.py"],
    ),
    "TK1": Suite(
        "laws of token maps: restore, conserved sums, rows that sum to 1, padding",
        "exact, or 1e-6",
        [f"tests/tokens/test_token_{name}.py" for name in (
            "maps", "mix", "pack", "aggregate", "windows", "layout", "labels", "splat")],
    ),
    "TK2": Suite(
        "keeping every token is the dense encoder, for every method, in training too",
        "bit for bit",
        ["tests/sparse_detr -k bitwise", "tests/focus_detr -k bitwise",
         "tests/dynamic_detr -k bitwise", "tests/lite_detr -k bitwise",
         "tests/encoder/test_token_encoder.py -k bitwise",
         "tests/encoder/test_bypass_detectors.py -k bitwise"],
    ),
    "TR4": Suite(
        "2 and 4 processes train like one, uneven and empty boxes, detectors of every kind",
        "float64 1e-12, float32 2e-6 after 20 steps",
        [f"{LAUNCH} -k processes_equal_one", f"{LAUNCH} -k without_boxes",
         f"{LAUNCH} -k dino_like_one", f"{LAUNCH} -k resume_bitwise",
         f"{LAUNCH} -k all_ways_to_start", "tests/train/test_network.py",
         "tests/projects/test_distributed_detectors.py"],
    ),
}  # fmt: skip


def _case_of(suite: Suite) -> Callable[[int, Path], int]:
    def case(seed: int, folder: Path) -> int:
        if suite.needs_gpu and not torch.cuda.is_available():
            raise Unavailable("needs a GPU")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(seed)}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-m", "slow or not slow", "-p",
             "no:cacheprovider", f"--basetemp={folder / 'pytest'}",
             *shlex.split(suite.cases[seed])],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        tail = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]
        if done.returncode:
            failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
            raise AssertionError("; ".join(failed[:3]) or tail)
        return int(tail.split(" passed")[0].split()[-1]) if " passed" in tail else 0

    return case


for _name, _suite in SUITE.items():
    row(
        _name,
        _suite.what,
        target=_suite.target,
        default=0,
        nightly=len(_suite.cases),
        unit="tests",
    )(_case_of(_suite))
