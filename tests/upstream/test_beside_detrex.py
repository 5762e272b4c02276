"""Every config beside detectron2 and detrex: it loads, and a plain trainer's steps hold."""

import pytest
from detectron2.config import LazyConfig, instantiate

from tokendetr.config import zoo
from tokendetr.config.targets import check_targets

pytestmark = pytest.mark.upstream


@pytest.mark.parametrize("name", zoo.list())
def test_a_config_loads_and_all_it_names_exists(name):
    config = LazyConfig.load(str(zoo.get_config_file(name)))
    check_targets(config)
    assert {"model", "dataloader", "optimizer", "lr_multiplier", "train"} <= set(config)


def test_what_follows_train_resolves_in_the_steps_of_detrex_s_trainer(tmp_path, shapes):
    """It applies overrides to a plain load, saves the config and builds single nodes."""
    config = LazyConfig.load(str(zoo.get_config_file("dino_shapes")))
    config = LazyConfig.apply_overrides(
        config, [f"train.output_dir={tmp_path}", "train.device=cpu", "model.num_queries=20"]
    )
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    assert "device: ${train.device}" in (tmp_path / "config.yaml").read_text()
    model = instantiate(config.model)
    assert str(next(model.parameters()).device) == "cpu"
    config.optimizer.params.model = model
    assert instantiate(config.optimizer).param_groups
    assert instantiate(config.dataloader.evaluator)._output_dir == str(tmp_path)
