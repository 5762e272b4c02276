"""``tokendetr.config.sparsify`` replaces the encoder of a model's config and nothing else."""

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from omegaconf import OmegaConf
from torch import nn

from tokendetr.config import sparsify
from tokendetr.encoder import TokenEncoder, TokenPlan, TokenSparsifier
from tokendetr.errors import ConfigError


class Detector(nn.Module):
    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer


class Transformer(nn.Module):
    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder


class Encoder(TokenEncoder):
    pass


class Dense(TokenSparsifier):
    def plan(self, context):
        return TokenPlan(context)


def test_sparsify_swaps_targets_and_keeps_every_path():
    model = L(Detector)(
        transformer=L(Transformer)(
            encoder=L(Encoder)(embed_dim="${..width}", num_layers=2, num_heads=4), width=16
        )
    )
    before = OmegaConf.to_container(model)["transformer"]["encoder"]
    assert sparsify(model, L(Dense)(value_policy="initial")) is model
    after = OmegaConf.to_container(model)["transformer"]["encoder"]
    assert {**before, "_target_": None} == {
        **{key: value for key, value in after.items() if key != "sparsifier"},
        "_target_": None,
    }
    cfg = LazyConfig.apply_overrides(
        OmegaConf.create({"model": model}, flags={"allow_objects": True}),
        ["model.transformer.encoder.num_layers=3"],
    )
    built = instantiate(cfg.model)
    assert type(built) is Detector
    encoder = built.transformer.encoder
    assert type(encoder) is TokenEncoder
    assert (encoder.num_layers, encoder.embed_dim) == (3, 16)
    assert encoder.sparsifier.value_policy == "initial"
    assert len(built._forward_hooks) == 1


def test_sparsify_names_what_is_missing():
    with pytest.raises(KeyError, match=r"transformer\.encoder"):
        sparsify(L(nn.Linear)(in_features=1), L(nn.Identity)())


def test_an_encoder_with_arguments_of_its_own_is_refused_and_left_alone():
    model = L(Detector)(
        transformer=L(Transformer)(
            encoder=L(Encoder)(embed_dim="${..width}", num_layers=2, multi_level_fusion="dense"),
            width=16,
        )
    )
    before = OmegaConf.to_yaml(model)
    with pytest.raises(ConfigError, match="multi_level_fusion"):
        sparsify(model, L(Dense)())
    assert OmegaConf.to_yaml(model) == before
