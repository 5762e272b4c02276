"""--eval-only: the numbers of the training run, from any kind of file."""

import argparse
import json
import logging
import shutil

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.evaluation import DatasetEvaluators, PascalVOCDetectionEvaluator

from tests.train import toy
from tokendetr.checkpoint.safetensors import save_safetensors
from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.cli.sweep_tokens import average_precision
from tokendetr.config.load import fill_defaults
from tokendetr.errors import CheckpointMismatchError, ConfigError
from tokendetr.evaluation.first_images import FirstImages
from tokendetr.evaluation.run import Evaluation
from tokendetr.train.run import evaluate, run
from tokendetr.train.setup import run_logging


def make(toy_root, output, *overrides):
    cfg = toy.make_config(toy_root, output)
    fill_defaults(cfg)
    LazyConfig.apply_overrides(cfg, list(overrides))
    return cfg, instantiate(cfg.model)


def same(first, second):
    """Equal numbers, NaN equal to NaN."""
    return first.keys() == second.keys() and all(
        first[k] == pytest.approx(second[k], nan_ok=True) for k in first
    )


def test_evaluation_repeats_the_run(toy_run, toy_root, tmp_path):
    options = ["train.model_ema.enabled=True", "train.model_ema.decay=0.5"]
    toy_run(tmp_path, *options)
    path = f"train.init_checkpoint={tmp_path}/model_final.pth"
    cfg, model = make(toy_root, tmp_path, *options, path)
    results = evaluate(cfg, model)
    assert list(results) == ["bbox", "bbox_ema"] and results["bbox"] != results["bbox_ema"]
    cfg, model = make(toy_root, tmp_path, path)
    plain = evaluate(cfg, model)
    assert list(plain) == ["bbox"] and same(plain["bbox"], results["bbox"])
    only = "train.model_ema.use_ema_weights_for_eval_only=True"
    cfg, model = make(toy_root, tmp_path, *options, only, path)
    assert same(evaluate(cfg, model)["bbox_ema"], results["bbox_ema"])
    # The moving average's result file is written beside the model's, not over it.
    assert (tmp_path / "ema" / "coco_instances_results.json").is_file()


def relabeled(root, folder, count):
    """Copy a data set's first images, with one box around all of each."""
    shutil.copytree(root, folder)
    labels = json.loads((folder / "annotations.json").read_text())
    labels["images"] = labels["images"][:count]
    labels["annotations"] = [
        {"id": i, "image_id": image["id"], "category_id": 1, "iscrowd": 0}
        | {"bbox": [0, 0, image["width"], image["height"]], "area": 1120}
        for i, image in enumerate(labels["images"], 1)
    ]
    (folder / "annotations.json").write_text(json.dumps(labels))
    return folder


def test_the_first_images_are_judged_as_if_there_were_no_others(toy_root, tmp_path, caplog):
    cfg, model = make(relabeled(toy_root, tmp_path / "ten", 10), tmp_path / "first")
    with torch.no_grad():
        model.bbox_embed.weight.zero_()
        model.bbox_embed.bias.copy_(torch.tensor([-3.0, -3.0, 3.0, 3.0]))  # about all of an image
    with caplog.at_level(logging.INFO, logger="tokendetr"):
        first = evaluate(cfg, model, images=3)
    assert "of the first 3 of 10 test images" in caplog.text
    detections = json.loads((tmp_path / "first" / "coco_instances_results.json").read_text())
    assert {found["image_id"] for found in detections} == {1, 2, 3}
    alone, model_of_three = make(relabeled(toy_root, tmp_path / "three", 3), tmp_path / "alone")
    model_of_three.load_state_dict(model.state_dict())
    assert same(first["bbox"], evaluate(alone, model_of_three)["bbox"])
    assert first["bbox"]["AP50"] == pytest.approx(100)


def test_evaluators_that_count_all_images_refuse_a_part_of_them():
    evaluator = object.__new__(PascalVOCDetectionEvaluator)
    with pytest.raises(ConfigError, match="PascalVOCDetectionEvaluator .* without --images"):
        FirstImages(3).restrict_evaluator(DatasetEvaluators([evaluator]))


def test_an_evaluator_that_cannot_be_built_is_named_before_any_work(toy_root, tmp_path):
    """Also to the sweep, which builds it before it fits anything."""
    for evaluator, message in (
        ({"_target_": "tests.train.test_train_eval.needs_a_package"}, "cannot be built .* absent"),
        ({"_target_": "builtins.dict"}, "is a dict, not an evaluator"),
    ):
        cfg, model = make(toy_root, tmp_path / "out")
        cfg.dataloader.evaluator = evaluator
        with pytest.raises(ConfigError, match=f"dataloader.evaluator {message}"):
            Evaluation(cfg, model).prepare()
        with pytest.raises(ConfigError, match=f"dataloader.evaluator {message}"):
            average_precision(cfg, model, 2)


def needs_a_package():
    raise ImportError("this evaluation needs an absent package")


def test_an_ap_needs_an_evaluator_of_boxes(toy_root, tmp_path):
    cfg, model = make(toy_root, tmp_path / "out")
    cfg.dataloader.evaluator = None
    Evaluation(cfg, model).prepare()  # for training, which may go without
    with pytest.raises(ConfigError, match="evaluator of boxes"):
        Evaluation(cfg, model).prepare(required=True)
    with pytest.raises(ConfigError, match="dataloader.evaluator of boxes"):
        Evaluation(cfg, model).box_ap()


def test_safetensors_files_evaluate(toy_run, toy_root, tmp_path):
    model = toy_run(tmp_path, "train.max_iter=2")
    path = str(tmp_path / "weights.safetensors")
    save_safetensors(model, path, dtype=torch.float32)
    cfg, fresh = make(toy_root, tmp_path, f"train.init_checkpoint={path}")
    expected, model = make(toy_root, tmp_path, f"train.init_checkpoint={tmp_path}/model_final.pth")
    assert same(evaluate(cfg, fresh)["bbox"], evaluate(expected, model)["bbox"])


def test_checkpoint_of_another_model(toy_run, toy_root, tmp_path):
    toy_run(tmp_path, "train.max_iter=1")
    path = f"train.init_checkpoint={tmp_path}/model_final.pth"
    cfg, model = make(toy_root, tmp_path, path, "model.num_classes=7")
    with pytest.raises(
        CheckpointMismatchError, match=r"class_embed\.weight: \[3, 128\] in the file"
    ):
        evaluate(cfg, model)


def test_fine_tuning_starts_from_what_fits(toy_run, tmp_path):
    toy_run(tmp_path / "first", "train.max_iter=1")
    path = f"train.init_checkpoint={tmp_path}/first/model_final.pth"
    start = read_checkpoint(f"{tmp_path}/first/model_final.pth")["model"]
    tuned = toy_run(
        tmp_path / "second",
        "model.num_classes=5",
        "train.init_checkpoint_strict=False",
        "train.max_iter=1",
        "optimizer.lr=0.0",
        "dataloader.evaluator=null",
        path,
    )
    assert torch.equal(tuned.stem.weight, start["stem.weight"])


def test_whole_program_in_this_process(toy_root, tmp_path, monkeypatch):
    """Command line to metrics: fast_dev_run, saved config, files as upstream's."""
    monkeypatch.setenv("TOY_ROOT", str(toy_root))
    monkeypatch.setenv("TOY_OUTPUT", str(tmp_path))
    args = argparse.Namespace(
        config_file="tests/train/toy_config.py",
        opts=["train.fast_dev_run.enabled=True"],
        eval_only=False,
        resume=False,
    )
    results = run(args)
    assert 0 <= results["bbox"]["AP"] <= 100
    out = tmp_path / "fast_dev_run"  # a trial leaves nothing that a resumed run would find
    assert [p.name for p in tmp_path.iterdir()] == ["fast_dev_run"]
    names = {p.name for p in out.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    log = (out / "log.txt").read_text()
    assert "copypaste: AP,AP50" in log and "epoch: " in log
    assert LazyConfig.load(str(out / "config.yaml")).train.max_iter == 20
    assert len((out / "metrics.json").read_text().splitlines()) >= 20


def test_an_evaluation_in_a_runs_folder_leaves_its_files_alone(toy_root, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_ROOT", str(toy_root))
    monkeypatch.setenv("TOY_OUTPUT", str(tmp_path))
    given = {"config_file": "tests/train/toy_config.py", "resume": False}
    run(argparse.Namespace(**given, opts=["train.max_iter=2"], eval_only=False))
    names = ("config.yaml", "coco_instances_results.json", "run.json", "metrics.json")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    options = [f"train.init_checkpoint={tmp_path / 'model_final.pth'}", "optimizer.lr=0.5"]
    run(argparse.Namespace(**given, opts=options, eval_only=True))
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    assert LazyConfig.load(str(tmp_path / "config_evaluation.yaml")).optimizer.lr == 0.5
    assert (tmp_path / "evaluation" / "coco_instances_results.json").is_file()


def test_two_runs_of_one_process_have_a_log_each(tmp_path, capfd):
    logger = logging.getLogger("tokendetr.train")
    before = [list(logging.getLogger(name).handlers) for name in ("tokendetr", "detectron2")]
    for name in ("one", "two", "one"):
        (tmp_path / name).mkdir(exist_ok=True)
        with run_logging(str(tmp_path / name)):
            logger.info("words of run %s", name)
    shown = "".join(capfd.readouterr())
    assert (shown.count("run one"), shown.count("run two")) == (2, 1)
    logs = {name: (tmp_path / name / "log.txt").read_text() for name in ("one", "two")}
    assert (logs["one"].count("run one"), logs["one"].count("run two")) == (2, 0)
    assert (logs["two"].count("run two"), logs["two"].count("run one")) == (1, 0)
    after = [list(logging.getLogger(name).handlers) for name in ("tokendetr", "detectron2")]
    assert after == before
