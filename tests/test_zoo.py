"""Configs by name."""

import pytest
import torch
from detectron2.config import instantiate

from tokendetr.checkpoint.safetensors import save_slim
from tokendetr.config import zoo
from tokendetr.errors import ConfigError


def test_every_listed_config_loads_with_the_five_top_level_names():
    names = zoo.list()
    assert "dino_r50_4scale_12ep" in names
    for name in names:
        try:
            config = zoo.get_config(name)
        except ConfigError as error:
            assert "needs detectron2 itself" in str(error), name
            continue
        missing = {"model", "dataloader", "optimizer", "lr_multiplier", "train"} - set(config)
        assert not missing, (name, missing)


def test_parts_of_configs_are_not_listed():
    assert "dino_r50" not in zoo.list()


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(KeyError, match="dino_r50_4scale_12ep"):
        zoo.get_config("dino_r50_4scale_12epochs")


def test_load_builds_the_model_with_the_checkpoint_in_evaluation_mode(tmp_path):
    config = zoo.get_config("dino_shapes")
    config.model.device = "cpu"
    model = instantiate(config.model)
    save_slim(model, str(tmp_path / "weights.safetensors"), dtype=torch.float32)
    loaded = zoo.load("dino_shapes", str(tmp_path / "weights.safetensors"))
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
