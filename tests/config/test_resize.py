"""A detector's config at another width and depth."""

import pytest
import torch
from detectron2.config import instantiate

from tokendetr.config import load_config, resize, zoo
from tokendetr.detector import layer_weights
from tokendetr.layers.deformable_attention import MultiScaleDeformableAttention

SIZE = {"width": 32, "num_heads": 2, "feedforward_dim": 24}


@pytest.mark.parametrize("num_layers", [1, 2, 8])
@pytest.mark.parametrize("name", ["dino_r50_4scale_12ep", "h_deformable_detr_r50_two_stage_12ep"])
def test_losses_are_weighted_as_for_a_decoder_written_with_that_depth(name, num_layers):
    model = zoo.get_config(name).model
    before = dict(model.criterion.weight_dict)
    last = {n: w for n, w in before.items() if n.count("_") == 1 or n.endswith("_dn")}
    resize(model, **SIZE, num_layers=num_layers)
    after = dict(model.criterion.weight_dict)
    assert after == layer_weights(last, num_layers=num_layers, suffixes=["_enc"])
    assert list(after) == list(layer_weights(last, num_layers=num_layers, suffixes=["_enc"]))


def test_every_part_that_sees_tokens_follows_and_the_backbone_stays():
    model = zoo.get_config("dino_r50_4scale_12ep").model
    model.device = "cpu"
    resize(model, **SIZE, num_layers=2)
    built = instantiate(model)
    channels = {name: tuple(p.shape) for name, p in built.named_parameters()}
    assert channels["transformer.encoder.layers.1.ffns.0.layers.0.0.weight"] == (24, 32)
    assert channels["transformer.decoder.layers.1.ffns.0.layers.1.weight"] == (32, 24)
    assert channels["neck.convs.0.conv.weight"] == (32, 512, 1, 1)
    assert channels["label_enc.weight"] == (80, 32)
    assert built.neck.convs[0].norm.num_groups == 4  # of eight channels, as before
    assert len(built.class_embed) == 3


def test_without_a_depth_the_layers_stay():
    model = resize(zoo.get_config("dab_deformable_detr_r50_50ep").model, **SIZE)
    assert model.transformer.encoder.num_layers == model.transformer.decoder.num_layers == 6
    assert "loss_giou_4" in model.criterion.weight_dict


def test_heads_must_divide_the_width():
    model = zoo.get_config("dino_r50_4scale_12ep").model
    with pytest.raises(ValueError, match="width must be a multiple of 2 . num_heads = 6: 32"):
        resize(model, width=32, num_heads=3, feedforward_dim=8)


@pytest.mark.parametrize(
    "name",
    ["dino", "deformable_detr", "dab_deformable_detr", "dn_deformable_detr", "h_deformable_detr"],
)
def test_encoder_and_decoder_take_a_number_of_sampled_points(name):
    points = [f"model.transformer.{part}.num_points=2" for part in ("encoder", "decoder")]
    small = load_config(f"{name}_shapes", ["model.device=cpu", *points])
    model = instantiate(small.model).eval()
    attentions = [m for m in model.modules() if isinstance(m, MultiScaleDeformableAttention)]
    assert len(attentions) == 6 and {m.num_points for m in attentions} == {2}
    with torch.no_grad():
        (found,) = model([{"image": torch.zeros(3, 64, 96), "height": 64, "width": 96}])
    assert found["instances"].pred_boxes.tensor.isfinite().all()
