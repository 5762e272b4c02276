"""detrex's own configs and its own ``tools/train_net.py`` with this project's encoders."""

import math

import pytest
import torch

from tests.train.toy import write_dataset
from tests.upstream.flows.programs import ROOT, checkout, detrexs_projects, metrics, start

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(1800)]

CONFIGS = {
    "dino": "projects/dino/configs/dino-resnet/dino_r50_4scale_12ep.py",
    "deformable": "projects/deformable_detr/configs/deformable_detr_r50_two_stage_50ep.py",
    "dab": "projects/dab_deformable_detr/configs/dab_deformable_detr_r50_50ep.py",
    "dn": "projects/dn_deformable_detr/configs/dn_deformable_detr_r50_50ep.py",
    "h": "projects/h_deformable_detr/configs/h_deformable_detr_r50_two_stage_12ep.py",
}
METHODS = {
    "dino": "sparse",
    "deformable": "focus",
    "dab": "dynamic",
    "dn": "sparse",
    "h": "dynamic",
}
TRAIN = ["-m", "tests.upstream.flows.on_a_cpu", "tools/train_net.py"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("flow"), num_images=4).parent


@pytest.mark.parametrize("detector", CONFIGS)
def test_detrex_trains_resumes_and_evaluates_with_our_encoder(detector, data, tmp_path):
    """Ten iterations in two starts; the assertion that CUDA is there is patched."""
    output = tmp_path / "output"
    variables = {
        "FLOW_CONFIG": CONFIGS[detector],
        "FLOW_METHOD": METHODS[detector],
        "FLOW_DATA": data,
        "FLOW_OUTPUT": output,
        "PYTHONPATH": f"{detrexs_projects(tmp_path)}:{ROOT}",
    }
    config = ["--config-file", __file__.replace("test_detrex_scripts", "detrex_config")]

    def program(*options):
        return start([*TRAIN, *config, *options], checkout("detrex"), **variables)

    once = ["train.checkpointer.period=5", "train.eval_period=0"]
    program("train.max_iter=5", *once)
    program("--resume", "train.max_iter=10", *once)
    lines = metrics(output)
    assert [line["iteration"] for line in lines if "total_loss" in line] == list(range(10))
    assert all(math.isfinite(line["total_loss"]) for line in lines if "total_loss" in line)
    weights = output / "model_final.pth"
    saved = torch.load(weights, weights_only=False)
    assert saved["iteration"] == 9
    printed = program("--eval-only", f"train.init_checkpoint={weights}").stdout
    assert "Evaluation results for bbox" in printed or "copypaste: AP" in printed
