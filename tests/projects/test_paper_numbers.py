"""The hyperparameters that the papers print are those of the configs that bear their names."""

import inspect

import pytest
from omegaconf import OmegaConf

from focus_detr import foreground_loss
from sparse_detr import SparseSparsifier
from spt_backbone import SPT
from token_transforming import Reduction
from tokendetr.config.load import load_config
from tokendetr.config.zoo import get_config_file

ENCODER = "model.transformer.encoder"
SPARSIFIER = f"{ENCODER}.sparsifier"
DYNAMIC = {
    f"{SPARSIFIER}.level_orders.0": [1, 2, 3, 4],  # printed in section 3.2; others only drawn
    f"{SPARSIFIER}.stage_lengths": [2, 3, 1],
    f"{SPARSIFIER}.window_sizes": [8, 4, 2],  # 2^(4 - l): the text's 2^(l - 1) cannot merge level 1
    f"{SPARSIFIER}.num_neighbors": 3,
    f"{SPARSIFIER}.alignment_weight": 0.1,
    f"{SPARSIFIER}.alignment": "two_pass",
    f"{ENCODER}.num_layers": 6,
}
FOCUS = {
    f"{SPARSIFIER}.num_objects": 300,
    f"{SPARSIFIER}.loss_weight": 1.5,
    f"{SPARSIFIER}.keep_ratio": 0.3,
    f"{SPARSIFIER}.modulation": "top_down",
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 1e-4,
}
SPT_ALL = {
    "model.backbone.threshold": 0.01,
    "model.backbone.selection_loss_weight": 0.01,
    "model.backbone.window_size": 7,
    "model.backbone.start_stage": 3,
    "model.backbone.ffn_on": "all",
}
PRINTED = {
    **{
        f"dynamic_{name}": {**DYNAMIC, f"{SPARSIFIER}.keep_ratios": ratios}
        for name, ratios in {
            "dino_r50_4scale_36ep": [0.5, 0.4, 0.3, 0.2],
            "dab_deformable_detr_r50_50ep": [0.5, 0.4, 0.3, 0.2],
            "dn_deformable_detr_r50_50ep": [0.5, 0.4, 0.3, 0.2],
            "deformable_detr_r50_with_box_refinement_50ep": [0.4, 0.3, 0.2, 0.1],
            "h_deformable_detr_r50_two_stage_36ep": [0.4, 0.3, 0.2, 0.1],
        }.items()
    },
    "focus_detr_r50_4scale_36ep": FOCUS,
    "sparse_deformable_detr_r50_50ep": {
        f"{SPARSIFIER}.keep_ratio": 0.3,
        f"{SPARSIFIER}.selection": "dam",
        f"{SPARSIFIER}.auxiliary_heads": True,
        "optimizer.lr": 2e-4,
        "model.num_queries": 300,
    },
    "spt_dino_tiny_4scale_12ep": {**SPT_ALL, "model.backbone.depths": [2, 2, 6 + 4, 2]},
    "spt_dino_small_4scale_12ep": {**SPT_ALL, "model.backbone.depths": [2, 2, 18 + 4, 2]},
}


@pytest.mark.parametrize("name", PRINTED)
def test_a_config_has_the_papers_numbers(name):
    config = load_config(str(get_config_file(name)))
    found = {key: OmegaConf.select(config, key) for key in PRINTED[name]}
    assert {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for key, value in found.items()
    } == PRINTED[name]


def test_numbers_that_are_no_settings_of_a_config():
    sparse = inspect.signature(SparseSparsifier).parameters
    assert (sparse["objective"].default, sparse["dam_weight"].default) == ("bce", 1.0)
    assert (foreground_loss.FOCAL_ALPHA, foreground_loss.FOCAL_GAMMA) == (0.25, 2.0)
    paper = Reduction()
    assert (paper.threshold, paper.temperature, paper.keep_ratio) == (0.5, 150.0, 0.7)
    assert (paper.selection, paper.similarity, paper.recovery) == ("attention", "cosine", "paper")
    assert paper.normalize and paper.scales
    spt = SPT(embed_dim=6, num_heads=(1, 1, 1, 1))
    assert {block.options.container_length for block in spt.layers[2].blocks} == {49}
    assert len(spt.layers[2].blocks) == 6 + 4
