"""The parts of a detector agree on width, levels and classes, or the detector is not built."""

import pytest
from detectron2.config import LazyConfig, instantiate

from tokendetr.config import zoo
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
        ("model.pixel_mean=[1,2]", r"model.pixel_mean needs .* three, got \[1, 2\]"),
    ],
)
def test_a_number_set_for_one_part_alone_is_refused(override: str, message: str) -> None:
    cfg = LazyConfig.apply_overrides(zoo.get_config("dino_shapes"), [override])
    with pytest.raises(ConfigError, match=message):
        instantiate(cfg.model)
