"""``tokendetr.config.sparsify`` replaces the encoder of a model's config and nothing else."""

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from omegaconf import OmegaConf
from torch import nn

from tokendetr.config import observed, sparsify, target_name, zoo
from tokendetr.encoder import TokenEncoder, TokenPlan, TokenSparsifier
from tokendetr.errors import ConfigError
from tokendetr.sparsification import sparse_config


def nodes(value, key):
    """Yield the dicts of a container, outermost first, with their keys."""
    if isinstance(value, dict):
        yield key, value
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in items:
        if isinstance(item, dict | list):
            yield from nodes(item, f"{key}.{name}")


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


@pytest.mark.parametrize("method", ["sparse", "focus"])
def test_no_target_is_a_name_so_that_detectron2_can_show_the_config(method):
    budget = "mass" if method == "sparse" else "ratio"
    config = sparse_config(
        "dino_shapes", method=method, keep_ratio=0.3, budget=budget, checkpoint="m.pth"
    )
    named = [
        key
        for key, node in nodes(OmegaConf.to_container(config, resolve=False), "")
        if isinstance(node.get("_target_"), str)
    ]
    assert named == []
    shown = LazyConfig.to_py(config)
    assert "TokenEncoder(" in shown and "Sparsifier(" in shown


def test_a_config_that_was_saved_and_edited_again_is_wrapped_once(tmp_path):
    config = zoo.get_config("sparse_dino_shapes")
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    saved = LazyConfig.load(str(tmp_path / "config.yaml"))
    wrapped = saved.model.wrapped_target
    assert observed(saved.model).wrapped_target == wrapped


def test_a_node_that_takes_no_objects_gets_names():
    model = OmegaConf.create(
        {"_target_": "x.Detector", "transformer": {"encoder": {"_target_": "x.Encoder"}}}
    )
    sparsify(model, OmegaConf.create({"_target_": "x.Sparsifier"}))
    assert model._target_ == "tokendetr.config.wrap.build_observed"
    assert target_name(model.transformer.encoder._target_).endswith("TokenEncoder")
