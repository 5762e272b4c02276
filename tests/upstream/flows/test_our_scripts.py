"""This project's ``tools/train_net.py`` on classes of detrex's own.

Kills at random moments are tested by ``tests/train``, which also runs beside detrex; the other
programs by ``test_other_programs.py``.
"""

from pathlib import Path

import pytest
import torch

from tests.train.toy import write_dataset
from tests.upstream.flows.programs import ROOT, checkout, detrexs_projects, start

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(1800)]

CONFIG = ["--config-file", Path(__file__).with_name("detrex_config.py")]
TRAIN = [ROOT / "tools" / "train_net.py", *CONFIG]
OVERRIDES = ["train.eval_period=0", "train.checkpointer.period=2", "train.model_ema.enabled=True"]
OVERRIDES += ["train.amp.enabled=True", "train.amp.dtype=bfloat16"]


@pytest.fixture(scope="module")
def variables(tmp_path_factory):
    """The environment of a flow without the folder of its output."""
    data = write_dataset(tmp_path_factory.mktemp("flow"), num_images=4).parent
    config = "projects/deformable_detr/configs/deformable_detr_r50_two_stage_50ep.py"
    path = f"{detrexs_projects(tmp_path_factory.mktemp('path'))}:{ROOT}"
    return {
        "FLOW_CONFIG": checkout("detrex") / config,
        "FLOW_METHOD": "dynamic",
        "FLOW_DATA": data,
        "PYTHONPATH": path,
    }


def final(folder: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(folder / "model_final.pth", weights_only=False)
    return {**saved["model"], **{f"ema.{name}": v for name, v in saved["ema_state"].items()}}


def test_a_stopped_run_of_detrexs_detector_goes_on_bit_for_bit(variables, tmp_path):
    """With a moving average and bfloat16; then evaluated."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    start([*TRAIN, *OVERRIDES, "train.max_iter=4"], FLOW_OUTPUT=whole, **variables)
    # What a kill right after the second checkpoint leaves: the checkpoints up to it.
    start([*TRAIN, *OVERRIDES, "train.max_iter=4"], FLOW_OUTPUT=parts, **variables)
    for name in ("model_0000003.pth", "model_final.pth"):
        (parts / name).unlink(missing_ok=True)
    (parts / "last_checkpoint").write_text("model_0000001.pth")
    start([*TRAIN, "--resume", *OVERRIDES, "train.max_iter=4"], FLOW_OUTPUT=parts, **variables)
    one, other = final(whole), final(parts)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    weights = f"train.init_checkpoint={whole / 'model_final.pth'}"
    printed = start([*TRAIN, "--eval-only", weights], FLOW_OUTPUT=tmp_path / "e", **variables)
    assert "bbox" in printed.stdout


def test_two_processes_on_a_cpu(variables, tmp_path):
    options = ["--num-gpus", "2", "train.max_iter=2", "train.eval_period=0"]
    start([*TRAIN, *options, "train.device=cpu"], FLOW_OUTPUT=tmp_path / "run", **variables)
    assert (tmp_path / "run" / "model_final.pth").is_file()


def test_a_mistyped_checkpoint_is_one_line(variables, tmp_path):
    done = start(
        [*TRAIN, "train.init_checkpoint=/no/such/file.pth"],
        code=1,
        FLOW_OUTPUT=tmp_path / "run",
        **variables,
    )
    assert "/no/such/file.pth" in done.stderr and "Traceback" not in done.stderr + done.stdout
