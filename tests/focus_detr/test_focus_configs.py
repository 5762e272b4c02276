"""The configs: schedules, sizes that follow the encoder, and the published settings."""

import pytest
from detectron2.config import LazyConfig, instantiate

from focus_detr import FocusSparsifier
from tests.golden.reference import ROOT
from tokendetr.config import zoo
from tokendetr.config.files import RENAMED
from tokendetr.config.load import resolve_config

CONFIGS = sorted((ROOT / "projects/focus_detr/configs").rglob("focus_*ep.py"))
DROPS = {  # epochs: after how many of them the learning rate drops first
    "focus_detr_r50_4scale_12ep": 11,
    "focus_detr_r50_4scale_24ep": 20,
    "focus_detr_r50_4scale_36ep": 20,
    "focus_detr_r101_4scale_24ep": 20,
    "focus_detr_r101_4scale_36ep": 28,
    "focus_detr_swin_tiny_224_4scale_36ep": 30,
    "focus_detr_swin_large_384_4scale_36ep": 30,
    "focus_deformable_detr_r50_two_stage_50ep": 40,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_complete(path):
    config = LazyConfig.load(str(path))
    epochs = int(path.stem.rsplit("_", 1)[1].removesuffix("ep"))
    per_epoch = {"lvis": 6261, "voc2007": 314}  # images / 16; of COCO 7500
    data = next((name for name in per_epoch if name in path.stem), "coco")
    assert config.train.max_iter == epochs * per_epoch.get(data, 7500)
    if data != "voc2007":  # whose evaluator writes no files
        assert config.train.output_dir == config.dataloader.evaluator.output_dir
    assert config.train.output_dir == f"./output/{path.stem}"
    encoder = config.model.transformer.encoder
    sparsifier = instantiate(encoder.sparsifier)
    assert isinstance(sparsifier, FocusSparsifier)
    assert sparsifier.budget.num_layers == encoder.num_layers == 6
    assert sparsifier.budget.ratios == (0.5, 0.4, 0.3, 0.3, 0.2, 0.1)
    assert len(sparsifier.object_attentions) == 6
    one_stage = "deformable" in path.stem and "two_stage" not in path.stem
    assert (sparsifier.own_heads is not None) == one_stage
    if one_stage:
        assert sparsifier.own_heads.class_head.out_features == config.model.num_classes
    if "_r50_4scale" in path.stem or "_r101_4scale" in path.stem:
        temperature = 10000 if epochs == 12 else 20
        assert config.model.position_embedding.temperature == temperature


@pytest.mark.parametrize("name", DROPS)
def test_the_learning_rate_drops_when_it_did_in_the_published_runs(name):
    config = zoo.get_config(name)
    schedule, total = instantiate(config.lr_multiplier), config.train.max_iter
    before = schedule((DROPS[name] * 7500 - 1) / total)
    assert before == pytest.approx(1.0)
    assert schedule((DROPS[name] * 7500 + 1) / total) == pytest.approx(0.1)


def test_former_names_lead_to_the_renamed_configs():
    for former, name in RENAMED.items():
        assert zoo.get_config_file(former) == zoo.get_config_file(name)
        assert zoo.get_config_file(name).stem == name
        assert resolve_config(former) == resolve_config(name)
