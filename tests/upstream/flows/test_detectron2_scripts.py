"""This project's configs through detectron2's own ``tools/lazyconfig_train_net.py``."""

import json
import math
from pathlib import Path

import pytest

from tests.train.toy import write_dataset
from tests.upstream.flows.programs import checkout, metrics, start
from tokendetr.config import zoo

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(1800)]

RCNN = (
    "mask_rcnn_spt_tiny_36ep",
    "mask_rcnn_spt_tiny_bdd_s_36ep",
    "cascade_mask_rcnn_spt_base_36ep",
)


def with_masks(folder: Path) -> Path:
    """A tiny data set whose boxes are also polygons."""
    path = write_dataset(folder, num_images=4)
    content = json.loads(path.read_text())
    for record in content["annotations"]:
        x, y, w, h = record["bbox"]
        record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    path.write_text(json.dumps(content))
    return folder


def losses_of(folder: Path) -> dict[int, float]:
    """The loss of each iteration; a run's last line of metrics is its evaluation."""
    return {
        line["iteration"]: line["total_loss"] for line in metrics(folder) if "total_loss" in line
    }


def test_a_detector_of_ours(shapes, tmp_path):
    """A config that comes with the project, overridden on detectron2's own command line."""
    config = zoo.get_config_file("sparse_dino_shapes")
    overrides = ["train.max_iter=3", "train.eval_period=0", "train.log_period=1"]
    overrides += [f"train.output_dir={tmp_path}", "dataloader.train.total_batch_size=2"]
    program = checkout("detectron2") / "tools" / "lazyconfig_train_net.py"
    start([program, "--config-file", config, *overrides])
    losses = losses_of(tmp_path)
    assert set(losses) == {0, 1, 2} and all(math.isfinite(loss) for loss in losses.values())
    start([program, "--config-file", config, "--resume", *overrides, "train.max_iter=4"])
    assert set(losses_of(tmp_path)) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", RCNN)
def test_spt_under_mask_rcnn(name, tmp_path):
    """Trained two iterations with boxes and, but for BDD, masks; then evaluated."""
    output = tmp_path / "output"
    variables = {"FLOW_CONFIG": name, "FLOW_DATA": with_masks(tmp_path), "FLOW_OUTPUT": output}
    program = checkout("detectron2") / "tools" / "lazyconfig_train_net.py"
    config = ["--config-file", Path(__file__).with_name("rcnn_config.py")]
    start([program, *config], **variables)
    line = [line for line in metrics(output) if "total_loss" in line][-1]
    assert math.isfinite(line["total_loss"]) and any("select" in key for key in line)
    assert ("loss_mask" in line or "loss_mask_stage0" in line) == ("bdd" not in name)
    weights = f"train.init_checkpoint={output / 'model_final.pth'}"
    printed = start([program, *config, "--eval-only", weights], **variables)
    assert "copypaste: Task: bbox" in printed.stdout + printed.stderr
