"""Weights for another number of classes: the heads start fresh, and the table of keys is short."""

import pytest
import torch

from tests.train.toy import ToyDetector
from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.weights import load_weights
from tokendetr.errors import CheckpointMismatchError


def test_class_heads_of_another_number_keep_their_initial_weights(tmp_path, caplog):
    torch.save({"model": ToyDetector(num_classes=7).state_dict()}, tmp_path / "seven.pth")
    model = ToyDetector(num_classes=3)
    heads = model.class_embed.weight.clone()
    report = load_weights(AtomicCheckpointer(model), str(tmp_path / "seven.pth"), new_classes=True)
    assert report.is_complete and torch.equal(model.class_embed.weight, heads)
    lines = [r.getMessage() for r in caplog.records if "initial weights" in r.getMessage()]
    assert len(lines) == 1 and "class_embed" in lines[0]
    # An evaluation of heads without training would be of no use.
    with pytest.raises(CheckpointMismatchError, match="wrong shape"):
        load_weights(AtomicCheckpointer(ToyDetector()), str(tmp_path / "seven.pth"))


def test_another_model_is_no_matter_of_classes_and_its_table_is_short(tmp_path):
    weights = {f"some.quite.long.name.of.a.layer.number{i}": torch.zeros(1) for i in range(500)}
    weights["class_embed.weight"] = torch.zeros(7, 128)
    torch.save({"model": weights}, tmp_path / "other.pth")
    checkpointer = AtomicCheckpointer(ToyDetector())
    with pytest.raises(CheckpointMismatchError) as caught:
        load_weights(checkpointer, str(tmp_path / "other.pth"), new_classes=True)
    assert max(map(len, str(caught.value).splitlines())) < 250
