"""A run's config.yaml is data: reading it executes nothing, and it builds the same model."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BasicBlock
from detrex.modeling.neck import ChannelMapper
from omegaconf import OmegaConf

from tokendetr.config.load import load_config
from tokendetr.errors import ConfigError
from tokendetr.io.plain_yaml import load_plain_yaml


def test_keys_differ_where_maps_are_merged():
    """A merged map's keys are defaults, which the map's own keys may replace."""
    text = "a: &x {k: 1, l: 2}\nb: &y {<<: *x, k: 3}\nc: {<<: [*x, *y], l: 4}\nd: {1: a, '1': b}\n"
    content = load_plain_yaml(text, "a.yaml")
    assert content["b"] == {"k": 3, "l": 2} and content["c"] == {"k": 1, "l": 4}
    assert content["d"] == {1: "a", "1": "b"}
    with pytest.raises(ValueError, match=r"a\.yaml .* the key 'k' stands in lines 1 and 2"):
        load_plain_yaml("a: {k: 1,\n k: 1}", "a.yaml")


def test_saved_configs_have_no_tags_and_build_the_same(tmp_path):
    neck = LazyCall(ChannelMapper)(
        input_shapes={"res5": ShapeSpec(channels=8, stride=32)},
        in_features=["res5"],
        out_channels=4,
        num_outs=1,
        kernel_size=1,
        norm_layer=LazyCall(torch.nn.GroupNorm)(num_groups=2, num_channels=4),
    )
    content = {"model": neck, "block": LazyCall(SimpleNamespace)(kind=BasicBlock)}
    cfg = OmegaConf.create(content, flags={"allow_objects": True})
    path = tmp_path / "config.yaml"
    LazyConfig.save(cfg, str(path))
    assert "!!" not in path.read_text()
    for loaded in (load_config(str(path)), LazyConfig.load(str(path))):
        assert instantiate(loaded.block).kind is BasicBlock
        built, wanted = instantiate(loaded.model), instantiate(cfg.model)
        assert str(built) == str(wanted)


def test_what_detectron2_itself_writes_is_read():
    text = (
        "a: !!python/object:detectron2.layers.shape_spec.ShapeSpec {channels: 8, height: null,\n"
        "  stride: 4, width: null}\n"
        "b: !!python/name:detectron2.modeling.backbone.resnet.BasicBlock ''\n"
        "c: !!python/tuple [1, 2]\n"
    )
    loaded = OmegaConf.create(load_plain_yaml(text, "config.yaml"), flags={"allow_objects": True})
    assert instantiate(loaded.a) == ShapeSpec(channels=8, stride=4)
    assert instantiate(loaded.b) is BasicBlock
    assert loaded.c == [1, 2]


def test_a_refused_tag_is_named_with_its_line_and_a_hint(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("train: {}\nx: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match=r"config.yaml in line 2.*os.system.*use a Python config"):
        load_config(str(path))


@pytest.mark.parametrize("suffix", ["py", "yaml"])
def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path, suffix):
    text = "train = dict(max_iter=3)\n" if suffix == "py" else "train: {max_iter: 3}\n"
    path = tmp_path / f"config.{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_config(str(path)).train.max_iter == 3
    assert LazyConfig.load(str(path)).train.max_iter == 3
