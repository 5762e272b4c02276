"""Configs by name."""

import os

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from tokendetr.checkpoint.safetensors import load_safetensors, save_safetensors
from tokendetr.config import checkpoint_file, files, load_config, zoo
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
        # No more: detectron2's programs cannot save a part whose interpolations lead outside.
        assert set(config) == {"model", "dataloader", "optimizer", "lr_multiplier", "train"}, name
        assert_follows_train(config)


def assert_follows_train(config) -> None:
    """Follow by interpolation, so that a plain load and other trainers do too."""
    LazyConfig.apply_overrides(config, ["train.output_dir=mine", "train.device=meta"])
    if "device" in config.model:
        assert config.model.device == "meta"
    if "output_dir" in config.dataloader.evaluator:
        assert config.dataloader.evaluator.output_dir == "mine"


def test_parts_of_configs_are_not_listed():
    assert "dino_r50" not in zoo.list()


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(KeyError, match="dino_r50_4scale_12ep"):
        zoo.get_config("dino_r50_4scale_12epochs")


def test_load_builds_the_model_with_the_checkpoint_in_evaluation_mode(tmp_path):
    config = zoo.get_config("dino_shapes")
    config.model.device = "cpu"
    model = instantiate(config.model)
    save_safetensors(model, str(tmp_path / "weights.safetensors"), dtype=torch.float32)
    loaded = zoo.load("dino_shapes", str(tmp_path / "weights.safetensors"))
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_name_means_a_config_with_the_weights_that_come_with_it(caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = zoo.load("dino_shapes")
    weights = load_safetensors(zoo.get_checkpoint("dino_shapes"))
    name = "transformer.encoder.layers.0.attentions.0.value_proj.weight"
    assert torch.equal(model.state_dict()[name], weights[name])
    assert "random" not in caplog.text
    assert zoo.get_checkpoint("deformable_detr_shapes") is None
    zoo.load("deformable_detr_shapes")
    assert "no trained weights come with deformable_detr_shapes" in caplog.text


def test_programs_that_use_a_detector_take_its_own_weights_and_training_its_starting_point():
    dense, dynamic = map(zoo.get_checkpoint, ("dino_shapes", "dynamic_dino_shapes"))
    start = load_config("dynamic_dino_shapes").train.init_checkpoint
    assert (start, load_config("dynamic_dino_shapes", trained=True).train.init_checkpoint) == (
        dense,
        dynamic,
    )
    overrides = ["train.init_checkpoint=mine.pth"]
    assert load_config("dino_shapes", overrides, trained=True).train.init_checkpoint == "mine.pth"


def test_the_folder_of_a_run_means_its_config_with_its_best_weights_else_its_last(tmp_path):
    LazyConfig.save(zoo.get_config("dino_shapes"), str(tmp_path / "config.yaml"))

    def weights():
        return load_config(tmp_path, trained=True).train.init_checkpoint

    assert weights() == load_config("dino_shapes").train.init_checkpoint
    for name in ("model_final.pth", "model_best.pth"):
        (tmp_path / name).touch()
        assert weights() == str(tmp_path / name)
    with pytest.raises(ConfigError, match="is a folder: give the file in it"):
        load_config(tmp_path)


def test_a_folder_without_a_run_does_not_hide_the_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dino_shapes").mkdir()
    expected = load_config("dino_shapes", trained=True).train.init_checkpoint
    assert expected == zoo.get_checkpoint("dino_shapes")
    LazyConfig.save(zoo.get_config("dino_shapes"), "dino_shapes/config.yaml")
    (tmp_path / "dino_shapes" / "model_best.pth").touch()
    trained = load_config("dino_shapes", trained=True).train.init_checkpoint
    assert trained == os.path.join("dino_shapes", "model_best.pth")


def test_weights_that_do_not_come_with_the_project_say_how_they_are_made():
    with pytest.raises(FileNotFoundError, match=r"it is made as .*checkpoints/README\.md says"):
        zoo.load("dino_shapes", checkpoint_file("dino_shapes").replace("shapes", "gone"))


def test_a_checkout_may_be_in_a_folder_named_models(tmp_path, monkeypatch):
    projects = tmp_path / "models" / "projects"
    config, part = (projects / "dino" / "configs" / name for name in ("a.py", "models/b.py"))
    part.parent.mkdir(parents=True)
    config.touch()
    part.touch()
    monkeypatch.setattr(files, "PROJECTS_DIR", projects)
    assert files._config_files.__wrapped__() == {"a": config}
