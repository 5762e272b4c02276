"""Checkpoints know their classes: a resumed run and an evaluation compare them with the data's."""

import json
from pathlib import Path

import pytest
import torch

from tests.train.toy import FEW, make_config, write_dataset
from tokendetr.checkpoint.weights import read_checkpoint
from tokendetr.config.load import fill_defaults
from tokendetr.config.model import model_of
from tokendetr.errors import CheckpointMismatchError
from tokendetr.train.run import evaluate

NAMES = ["class0", "class1", "class2"]


def named(folder: Path, names: list[str]) -> Path:
    """Write the toy data set with other names of its classes."""
    path = write_dataset(folder)
    data = json.loads(path.read_text())
    for category, name in zip(data["categories"], names, strict=True):
        category["name"] = name
    path.write_text(json.dumps(data))
    return folder


def test_classes_that_have_moved_are_not_resumed(toy_run, run_folder, tmp_path):
    root = named(tmp_path / "swapped", ["class1", "class0", "class2"])
    before = (run_folder / "model_final.pth").read_bytes()
    with pytest.raises(CheckpointMismatchError, match="class 0 is 'class0' in .*model_final.pth"):
        toy_run(run_folder, *FEW, "train.max_iter=6", resume=True, root=root)
    assert (run_folder / "model_final.pth").read_bytes() == before


def test_a_class_of_a_new_name_is_resumed(toy_run, run_folder, tmp_path):
    names = ["class0", "corrected", "class2"]
    root = named(tmp_path / "renamed", names)
    toy_run(run_folder, *FEW, "train.max_iter=5", resume=True, root=root)
    assert read_checkpoint(str(run_folder / "model_final.pth"))["classes"] == names


@pytest.mark.parametrize(
    ("saved", "is_warned"),
    [(NAMES, False), (["class2", "class1", "class0"], True), (["a"], True), (7, False)],
)
def test_an_evaluation_says_that_classes_differ(run_folder, toy_root, caplog, saved, is_warned):
    path = run_folder / "model_final.pth"
    content = read_checkpoint(str(path))
    assert content["classes"] == NAMES
    torch.save({**content, "classes": saved}, path)
    cfg = make_config(toy_root, run_folder)
    fill_defaults(cfg)
    cfg.train.init_checkpoint = str(path)
    evaluate(cfg, model_of(cfg))
    assert ("Classes are compared by their numbers" in caplog.text) == is_warned
