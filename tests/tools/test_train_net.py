"""``tools/train_net.py`` trains every detector on shapes, stops when told to, and resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.patience import patience
from tests.source_tree import ROOT
from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.data.shapes import ShapesSpec, ensure_shapes

DETECTORS = (
    "dino",
    "deformable_detr",
    "dab_deformable_detr",
    "dn_deformable_detr",
    "h_deformable_detr",
)
ITERATIONS = 60
OVERRIDES = [
    f"train.max_iter={ITERATIONS}",
    "train.eval_period=0",
    "train.log_period=1",
    "dataloader.train.total_batch_size=2",
]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    ensure_shapes(root / "shapes", ShapesSpec(num_train=40, num_val=4), workers=2)
    return root


class Run:
    """One run of the training program, in a process group of its own."""

    def __init__(self, detector: str, datasets: Path, output: Path, *options: str):
        config = f"projects/{detector}/configs/{detector}_shapes.py"
        overrides = [*OVERRIDES, f"train.output_dir={output}"]
        self.output = output
        self.log = output.with_suffix(".txt").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "tools/train_net.py", "--config-file", config, *options, *overrides],
            cwd=ROOT,
            env={**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1"},
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> int:
        code = self.process.wait(timeout=patience(300))
        self.log.close()
        return code

    def stop_after(self, iteration: int) -> int:
        while self.process.poll() is None and max(losses(self.output), default=-1) < iteration:
            time.sleep(0.05)
        os.killpg(self.process.pid, signal.SIGTERM)
        return self.wait()


def losses(output: Path) -> dict[int, float]:
    """Return the total loss by iteration, smoothed over the last 20 of each process."""
    path = output / "metrics.json"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("detector", DETECTORS)
def test_training_lowers_the_loss_and_resumes(detector, datasets, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert Run(detector, datasets, whole).wait() == 0, whole.with_suffix(".txt").read_text()[-3000:]
    curve = losses(whole)
    assert len(curve) == ITERATIONS
    assert curve[ITERATIONS - 1] < 0.9 * curve[5]
    stopped = Run(detector, datasets, parts).stop_after(ITERATIONS // 3)
    assert stopped == 128 + signal.SIGTERM
    last = max(losses(parts))
    assert last < ITERATIONS - 21  # so that something is left to compare
    assert Run(detector, datasets, parts, "--resume").wait() == 0
    resumed = losses(parts)
    for iteration in range(last + 21, ITERATIONS):  # each process smooths its own steps
        assert resumed[iteration] == curve[iteration]
    weights = [read_checkpoint(str(p / "model_final.pth"))["model"] for p in (whole, parts)]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())
