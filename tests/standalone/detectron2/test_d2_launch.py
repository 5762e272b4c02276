"""Command line, setup and launching of processes."""

import argparse
import logging
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import (
    DefaultPredictor,
    SimpleTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    launch,
)
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from omegaconf import OmegaConf
from torch import nn

from tests.patience import patience
from tests.processes import report_threads_at_exit
from tests.standalone.detectron2.coco_files import random_coco
from tests.standalone.detectron2.toy_training import Regression, batches


def test_argument_parser_takes_overrides_last():
    parser = default_argument_parser()
    args = parser.parse_args(
        ["--config-file", "a.py", "--num-gpus", "2", "--resume", "train.max_iter=3", "model.x=1"]
    )
    assert args.config_file == "a.py" and args.num_gpus == 2 and args.resume
    assert args.opts == ["train.max_iter=3", "model.x=1"]
    defaults = parser.parse_args([])
    assert (defaults.num_machines, defaults.machine_rank, defaults.eval_only) == (1, 0, False)
    assert defaults.dist_url.startswith("tcp://127.0.0.1:")
    assert "my epilog" in default_argument_parser("my epilog").format_help()


@pytest.fixture
def loggers_as_before():
    """Restore the global loggers."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.propagate, logger.handlers = propagate, handlers
        logger.setLevel(level)


@pytest.mark.usefixtures("loggers_as_before")
def test_default_setup_writes_log_and_config_and_seeds(tmp_path):
    cfg = OmegaConf.create({"train": {"output_dir": str(tmp_path / "out"), "seed": 5}, "x": 1})
    config_file = tmp_path / "config.py"
    config_file.write_text("x = 1\n")
    args = argparse.Namespace(config_file=str(config_file), eval_only=False)
    default_setup(cfg, args)
    first = torch.rand(3)
    default_setup(cfg, args)
    assert torch.equal(torch.rand(3), first)
    log = (tmp_path / "out" / "log.txt").read_text()
    for text in ("Rank of current process: 0. World size: 1", "Environment info", "config.py"):
        assert text in log
    assert LazyConfig.load(str(tmp_path / "out" / "config.yaml")).train.seed == 5


def test_predictor_explains_what_it_needs():
    with pytest.raises(TypeError, match="lazy config"):
        DefaultPredictor(OmegaConf.create({"model": {}}))


def test_one_process_runs_in_place_and_ddp_is_no_wrapper():
    seen = []
    launch(seen.append, 1, args=(3,))
    assert seen == [3]
    model = nn.Linear(2, 2)
    assert create_ddp_model(model) is model


def test_launch_checks_its_arguments():
    with pytest.raises(AssertionError, match="machine"):
        launch(print, 1, num_machines=2, dist_url="auto")
    with pytest.raises(AssertionError, match="dist_url"):
        launch(print, 2)


class Oracle(nn.Module):
    """A model that returns the annotations of a record as detections."""

    def forward(self, records):
        return [{"instances": self.detections(record)} for record in records]

    def detections(self, record) -> Instances:
        annotations = record["annotations"]
        boxes = torch.tensor([a["bbox"] for a in annotations])
        boxes[:, 2:] += boxes[:, :2]
        return Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(boxes),
            pred_classes=torch.tensor([a["category_id"] for a in annotations]),
            scores=torch.linspace(0.9, 0.5, len(annotations)),
        )


def evaluate_oracle(json_file: str, out: str) -> dict:
    """Evaluate this rank's share of a data set; results arrive on rank 0."""
    register_coco_instances("test_oracle", {}, json_file, "")
    loader = build_detection_test_loader(DatasetCatalog.get("test_oracle"), mapper=None)
    evaluator = COCOEvaluator("test_oracle", output_dir=out)
    return inference_on_dataset(Oracle(), loader, evaluator)


def work_in_parallel(folder: str, json_file: str, fail: bool) -> None:
    """Two ranks train on halves of each batch of four, then evaluate halves of a data set."""
    rank = comm.get_rank()
    report_threads_at_exit(Path(folder) / f"threads{rank}.txt")
    assert comm.get_world_size() == 2 and comm.get_local_rank() == rank
    if fail and rank == 1:
        raise RuntimeError("rank 1 failed on purpose")
    torch.manual_seed(0)
    model = create_ddp_model(Regression().double())
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    shards = [batch.double().chunk(2)[rank] for batch in batches()]
    trainer = SimpleTrainer(model, shards, optimizer)
    trainer.train(0, 20)
    results = evaluate_oracle(json_file, folder)
    if not comm.is_main_process():
        assert results == {}
        return
    history = [value for value, _ in trainer.storage.histories()["total_loss"].values()]
    weights = model.module.linear.weight.detach()
    torch.save({"w": weights, "loss": history, "ap": results["bbox"]["AP"]}, folder + "/out.pth")


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the gloo processes of a CPU machine")
def test_two_gloo_processes_equal_one(tmp_path):
    json_file, _ = random_coco(tmp_path, num_images=7, with_images=False)
    arguments = (str(tmp_path), json_file, False)
    launch(
        work_in_parallel,
        2,
        dist_url="auto",
        args=arguments,
        timeout=timedelta(seconds=patience(60)),
    )
    result = torch.load(tmp_path / "out.pth")
    torch.manual_seed(0)
    model = Regression().double()
    loader = [batch.double() for batch in batches()]
    trainer = SimpleTrainer(model, loader, torch.optim.SGD(model.parameters(), 0.05))
    trainer.train(0, 20)
    torch.testing.assert_close(result["w"], model.linear.weight.detach(), rtol=0, atol=1e-12)
    expected = [value for value, _ in trainer.storage.histories()["total_loss"].values()]
    assert result["loss"] == pytest.approx(expected, rel=1e-12)
    assert result["ap"] == pytest.approx(100.0)
    # Each image arrived once, from whichever rank.
    saved = torch.load(tmp_path / "instances_predictions.pth")
    assert sorted(p["image_id"] for p in saved) == list(range(1, 8))
    # A thread of the group that meets the interpreter's end may abort the process.
    assert [(tmp_path / f"threads{rank}.txt").read_text() for rank in (0, 1)] == ["", ""]


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the gloo processes of a CPU machine")
def test_a_failing_rank_ends_the_run(tmp_path):
    with pytest.raises(Exception, match="rank 1 failed on purpose"):
        launch(work_in_parallel, 2, dist_url="auto", args=(str(tmp_path), "", True))
