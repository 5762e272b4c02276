"""Sparse encoders inside pixel decoders of Mask2Former's kind, against a plain one of that form."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dynamic_detr import DynamicSparsifier
from sparse_detr import SparseSparsifier
from tokendetr.encoder import sparsify_pixel_decoder
from tokendetr.errors import UnsupportedDetectorError
from tokendetr.layers import MultiScaleDeformableAttention

WIDTH, LEVELS, LAYERS = 16, 3, 2
SHAPES = ((8, 10), (4, 5), (2, 3))


class PlainLayer(nn.Module):
    """An encoder layer under the names of Deformable DETR's first code."""

    def __init__(self):
        super().__init__()
        self.self_attn = MultiScaleDeformableAttention(
            WIDTH, num_heads=2, num_levels=LEVELS, dropout=0.0, batch_first=True
        )
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.linear1, self.linear2 = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.dropout2, self.activation = nn.Dropout(0.0), F.relu

    def forward(self, src, pos, reference_points, spatial_shapes, padding_mask):
        src = self.norm1(
            self.self_attn(
                src,
                query_pos=pos,
                reference_points=reference_points,
                spatial_shapes=spatial_shapes,
                key_padding_mask=padding_mask,
            )
        )
        return self.norm2(src + self.linear2(self.activation(self.linear1(src))))


class PlainEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(PlainLayer() for _ in range(LAYERS))

    def forward(self, src, spatial_shapes, level_start_index, valid_ratios, pos, padding_mask):
        points = []
        for level, (h, w) in enumerate(spatial_shapes.tolist()):
            y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
            ratio_w, ratio_h = valid_ratios[:, level, :1], valid_ratios[:, level, 1:]
            points.append(
                torch.stack([x.flatten() / (w * ratio_w), y.flatten() / (h * ratio_h)], -1)
            )
        reference = torch.cat(points, 1)[:, :, None] * valid_ratios[:, None]
        for layer in self.layers:
            src = layer(src, pos, reference, spatial_shapes, padding_mask)
        return src


class OtherOrder(PlainEncoder):
    """Like TrackFormer's, which is not told where the levels start."""

    def forward(self, src, spatial_shapes, valid_ratios, pos, padding_mask):
        return super().forward(src, spatial_shapes, None, valid_ratios, pos, padding_mask)


class OtherPoints(PlainEncoder):
    """Tokens attend around another place of the image."""

    def forward(self, src, spatial_shapes, level_start_index, valid_ratios, pos, padding_mask):
        turned = valid_ratios.flip(-1)
        return super().forward(src, spatial_shapes, None, turned, pos, padding_mask)


class NoMask(PlainEncoder):
    def forward(self, src, spatial_shapes, level_start_index, valid_ratios, pos, padding_mask):
        return super().forward(src, spatial_shapes, None, valid_ratios, pos, None)


class NormBefore(PlainEncoder):
    def forward(self, src, spatial_shapes, level_start_index, valid_ratios, pos, padding_mask):
        src = self.layers[0].norm1(src)
        return super().forward(src, spatial_shapes, None, valid_ratios, pos, padding_mask)


class NotCompiled(PlainEncoder):
    def forward(self, src, spatial_shapes, level_start_index, valid_ratios, pos, padding_mask):
        raise RuntimeError("Not compiled with GPU support")


class DinoEncoder(PlainEncoder):
    """With the call and the outputs of the encoder of DINO's authors."""

    def forward(
        self,
        src,
        pos,
        spatial_shapes,
        level_start_index,
        valid_ratios,
        key_padding_mask,
        ref_token_index=None,
        ref_token_coord=None,
    ):
        memory = super().forward(
            src, spatial_shapes, level_start_index, valid_ratios, pos, key_padding_mask
        )
        return memory, None, None


class PlainModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.pixel_decoder = nn.Module()
        self.pixel_decoder.encoder = PlainEncoder()

    def forward(self, tokens, valid_ratios, padding_mask):
        shapes = torch.tensor(SHAPES)
        starts = torch.tensor([0, 80, 100])
        encode = self.pixel_decoder.encoder
        return encode(tokens, shapes, starts, valid_ratios, torch.sin(tokens), padding_mask)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = PlainModel().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch():
    """Two images, the second half as wide."""
    ratios, masks = torch.ones(2, LEVELS, 2), []
    for level, (h, w) in enumerate(SHAPES):
        mask = torch.zeros(2, h, w, dtype=torch.bool)
        mask[1, :, w // 2 :] = True
        ratios[1, level, 0] = (w // 2) / w
        masks.append(mask.flatten(1))
    tokens = torch.randn(2, sum(h * w for h, w in SHAPES), WIDTH)
    return tokens, ratios, torch.cat(masks, 1)


def random_tokens(keep_ratio):
    """A sparsifier that needs nothing of the detector."""
    return SparseSparsifier(
        keep_ratio=keep_ratio,
        embed_dim=WIDTH,
        num_layers=LAYERS,
        selection="random",
        auxiliary_heads=False,
    )


@pytest.mark.parametrize("sparsifier", [None, random_tokens(1.0)])
def test_all_tokens_give_the_plain_encoders_memory(model, sparsifier):
    inputs = batch()
    expected = model(*inputs)
    keys = set(model.state_dict())
    assert sparsify_pixel_decoder(model, sparsifier) is model
    assert set(model.state_dict()) == keys
    valid = ~inputs[2]
    torch.testing.assert_close(model(*inputs)[valid], expected[valid], rtol=1e-5, atol=1e-5)


def test_fewer_tokens_are_updated_and_weights_go_both_ways(model):
    inputs, plain = batch(), copy.deepcopy(model)
    sparsify_pixel_decoder(model, random_tokens(0.3))
    tokens = inputs[0]
    changed = (model(*inputs) != tokens).any(-1).float().mean(1)
    assert changed.min() > 0 and changed.max() < 0.5
    fresh = sparsify_pixel_decoder(PlainModel().eval(), None)
    fresh.load_state_dict(plain.state_dict())
    plain.load_state_dict(fresh.state_dict())
    valid = ~inputs[2]
    torch.testing.assert_close(fresh(*inputs)[valid], plain(*inputs)[valid], rtol=1e-5, atol=1e-5)


def test_parameters_stay_the_same_objects_and_frozen_ones_frozen(model):
    model.requires_grad_(False)
    model.pixel_decoder.encoder.layers[1].requires_grad_(True)
    before = dict(model.named_parameters())
    sparsify_pixel_decoder(model, None)
    after = dict(model.named_parameters())
    trained = {"encoder.layers.1." in name: value.requires_grad for name, value in after.items()}
    assert {id(value) for value in after.values()} == {id(value) for value in before.values()}
    assert trained == {True: True, False: False}


def test_detrexs_call_gives_the_same_memory(model):
    """Detectors with the first code's layers and detrex's call; their ReLU may be a module.

    Relation-DETR's DINO leaves the ratios out: they follow from the padding.
    """
    tokens, ratios, padding = batch()
    for layer in model.pixel_decoder.encoder.layers:
        layer.activation = nn.ReLU(inplace=True)
    sparsify_pixel_decoder(model, None)
    expected = model(tokens, ratios, padding)
    for given in (ratios, None):
        found = model.pixel_decoder.encoder(
            query=tokens,
            query_pos=torch.sin(tokens),
            query_key_padding_mask=padding,
            spatial_shapes=torch.tensor(SHAPES),
            level_start_index=torch.tensor([0, 80, 100]),
            reference_points=None,
            valid_ratios=given,
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("sparsifier", [None, random_tokens(1.0)])
def test_the_call_of_dinos_authors_gives_the_same_memory_and_outputs(model, sparsifier):
    tokens, ratios, padding = batch()
    theirs = DinoEncoder()
    theirs.load_state_dict(model.pixel_decoder.encoder.state_dict())
    model.pixel_decoder.encoder = theirs.eval()
    call = {
        "pos": torch.sin(tokens),
        "level_start_index": torch.tensor([0, 80, 100]),
        "spatial_shapes": torch.tensor(SHAPES),
        "valid_ratios": ratios,
        "key_padding_mask": padding,
        "ref_token_index": None,
        "ref_token_coord": None,
    }
    expected, *_ = theirs(tokens, **call)
    ours = sparsify_pixel_decoder(model, sparsifier).pixel_decoder.encoder
    memory, states, boxes = ours(tokens, **call)
    assert ours is not theirs and states is boxes is None
    torch.testing.assert_close(memory[~padding], expected[~padding], rtol=1e-5, atol=1e-5)
    with pytest.raises(UnsupportedDetectorError, match="two_stage_type must be 'standard'"):
        ours(tokens, **call | {"ref_token_index": torch.zeros(2, 3, dtype=torch.long)})


def test_arguments_of_another_call_are_not_dropped(model):
    tokens, ratios, padding = batch()
    encode = sparsify_pixel_decoder(model, None).pixel_decoder.encoder
    with pytest.raises(TypeError, match="key_padding_mask, text"):
        encode(
            tokens,
            spatial_shapes=torch.tensor(SHAPES),
            valid_ratios=ratios,
            key_padding_mask=padding,
            text=None,
        )


@pytest.mark.parametrize("sparsifier", [None, random_tokens(0.5)])
def test_layers_that_would_be_lost_are_named(model, sparsifier):
    """Weights that no layer here takes, as a fusion of all layers' memory; and no bias there."""
    encoder = model.pixel_decoder.encoder
    encoder.memory_fusion = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
    encoder.layers[1].linear1 = nn.Linear(WIDTH, 32, bias=False)
    with pytest.raises(
        UnsupportedDetectorError, match=r"layers\.1\.ffns.*memory_fusion\.0, memory_fusion\.1"
    ):
        sparsify_pixel_decoder(model, sparsifier)
    assert model.pixel_decoder.encoder is encoder


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (
            OtherOrder,
            r"takes \(src, spatial_shapes, valid_ratios, pos, padding_mask\).*ratios must",
        ),
        (OtherPoints, r"OtherPoints is not an encoder of Deformable DETR.*results differ by \d+%"),
        (NoMask, "results differ"),
        (NormBefore, "results differ"),
    ],
)
def test_encoders_that_compute_something_else_are_refused(model, kind, reason):
    theirs = kind().train()
    theirs.load_state_dict(model.pixel_decoder.encoder.state_dict())
    theirs.layers[0].norm1.eval()
    model.pixel_decoder.encoder = theirs
    with pytest.raises(UnsupportedDetectorError, match=reason):
        sparsify_pixel_decoder(model, random_tokens(0.5))
    assert model.pixel_decoder.encoder is theirs
    assert theirs.training and not theirs.layers[0].norm1.training


def test_an_encoder_that_does_not_run_is_taken_with_a_warning(model, caplog):
    model.pixel_decoder.encoder = NotCompiled()
    sparsify_pixel_decoder(model, None)
    assert "Not compiled with GPU support" in caplog.text and "accelerate" in caplog.text
    assert torch.isfinite(model(*batch())).all()


def test_hooks_that_would_be_lost_are_named(model, caplog):
    model.pixel_decoder.encoder.layers[1].norm2.register_forward_hook(lambda *_: None)
    sparsify_pixel_decoder(model, None)
    assert "hooks are not carried over" in caplog.text and "layers.1.norm2" in caplog.text


@pytest.mark.parametrize("second", ["dropout2", "dropout3"])
def test_dropouts_keep_their_probabilities(model, second):
    """A layer's own stand before its attention's, and CO-MOT's has no second one."""
    for layer in model.pixel_decoder.encoder.layers:
        layer.dropout1 = nn.Dropout(0.2)
        del layer.dropout2
        setattr(layer, second, nn.Dropout(0.3))
    sparsify_pixel_decoder(model, None)
    for layer in model.pixel_decoder.encoder.layers:
        assert layer.attentions[0].dropout.p == 0.2
        assert {m.p for m in layer.ffns.modules() if isinstance(m, nn.Dropout)} == {0.3}


def test_layers_that_share_weights_go_on_sharing(model):
    encoder = model.pixel_decoder.encoder
    encoder.layers[1] = encoder.layers[0]
    before = {id(value) for value in model.parameters()}
    sparsify_pixel_decoder(model, random_tokens(0.5))
    assert {id(value) for value in model.parameters()} == before


def test_what_does_not_fit_is_named(model):
    with pytest.raises(UnsupportedDetectorError, match="0 encoders of a pixel decoder"):
        sparsify_pixel_decoder(nn.Linear(2, 2), None)
    with pytest.raises(ValueError, match="num_layers is 6, the encoder has 2"):
        sparsify_pixel_decoder(model, SparseSparsifier(embed_dim=WIDTH))
    with pytest.raises(UnsupportedDetectorError, match="projection"):
        sparsify_pixel_decoder(model, SparseSparsifier(embed_dim=WIDTH, num_layers=LAYERS))
    model.pixel_decoder.encoder.layers[0].activation = F.gelu
    with pytest.raises(UnsupportedDetectorError, match="ReLU"):
        sparsify_pixel_decoder(model, DynamicSparsifier())
