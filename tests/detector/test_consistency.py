"""The parts of a detector are of its kinds and agree on their numbers, or it is not built."""

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from torch import nn

from tokendetr.config import zoo
from tokendetr.detector.interfaces import pyramid_levels
from tokendetr.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.embed_dim=48", r"width.*model.embed_dim 48.*encoder.embed_dim 96"),
        ("model.neck.out_channels=48", r"width.*model.embed_dim 96.*neck.out_channels 48"),
        ("model.position_embedding.num_pos_feats=24", r"width.*num_pos_feats, twice 48"),
        ("model.transformer.decoder.embed_dim=48", r"width.*decoder.embed_dim 48"),
        ("model.neck.num_outs=3", r"levels.*num_feature_levels 4.*neck.num_outs 3"),
        ("model.transformer.encoder.num_feature_levels=3", r"levels.*encoder.num_feature_levels 3"),
        ("model.transformer.decoder.num_feature_levels=3", r"levels.*decoder.num_feature_levels 3"),
        ("model.criterion.num_classes=3", r"classes.*model.num_classes 12.*num_classes 3"),
        ("model.criterion._target_=builtins.dict", r"model.criterion is a dict, not a torch"),
        ("model.backbone.out_features=[res3]", r"in_features has res4, res5, and .* gives res3"),
        ("model.neck.input_shapes.res3.channels=9", r"channels of res3.*backbone \d+, .*res3 9"),
        ("model.transformer=null", r"model.transformer is a NoneType, not a torch"),
        ("model.transformer.encoder=null", r"encoder is a NoneType, not a torch"),
        (
            "model.transformer.encoder._target_=torch.nn.Identity",
            r"called as \(query=, key=.*layout",
        ),
        (
            "model.transformer.decoder._target_=torch.nn.Identity",
            r"decoder is a Identity, which cannot",
        ),
        ("model.criterion._target_=torch.nn.Identity", r"Identity, .* as \(outputs, targets\)"),
        (
            "model.criterion.matcher=null",
            r"criterion.matcher is a NoneType, which cannot be called",
        ),
        ("model.criterion.matcher._target_=torch.nn.Identity", r"matcher is a Identity, .*targets"),
        ("model.criterion.weight_dict=null", r"whose weight_dict is None: .* weight of each loss"),
        ("model.criterion.losses=[class,masks]", r"losses has masks, .* losses are class, boxes"),
        ("model.pixel_mean=[1,2]", r"model.pixel_mean needs .* three, got \[1, 2\]"),
    ],
)
def test_a_number_set_for_one_part_alone_is_refused(override: str, message: str) -> None:
    cfg = LazyConfig.apply_overrides(zoo.get_config("dino_shapes"), [override])
    with pytest.raises(ConfigError, match=message):
        instantiate(cfg.model)


def test_a_transformer_of_another_kind_is_refused_where_stages_are_compared_too() -> None:
    cfg = LazyConfig.apply_overrides(
        zoo.get_config("deformable_detr_shapes"), ["model.transformer._target_=torch.nn.Identity"]
    )
    with pytest.raises(ConfigError, match=r"transformer is a Identity, which has no as_two_stage"):
        instantiate(cfg.model)


def test_a_backbone_and_a_neck_that_give_other_results_are_named_with_them() -> None:
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ConfigError, match=r"backbone is a Identity and gives a Tensor: .* dict of"):
        pyramid_levels(nn.Identity(), nn.Identity(), images)
    with pytest.raises(
        ConfigError, match=r"neck is a Identity and gives a dict: .* list of levels"
    ):
        pyramid_levels(lambda batch: {"res3": batch}, nn.Identity(), images)
    with pytest.raises(
        ConfigError, match=r"neck is a function and gives a list: .* \[B, C, H, W\]"
    ):
        pyramid_levels(lambda batch: {"a": batch}, lambda maps: [maps["a"][0]], images)
