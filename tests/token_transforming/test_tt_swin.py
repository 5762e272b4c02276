"""Transforming Swin within its windows."""

import contextlib
import copy

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling.backbone import SwinTransformer

from tests.token_transforming.small_swins import SETTINGS, images, swin
from token_transforming import METHODS, UnsupportedModelError, restore, transform
from token_transforming.config import transform_backbone
from token_transforming.merging import kept_tokens
from token_transforming.windows import position_table_bias, real_tokens, window_table_bias
from tokendetr.config import zoo
from tokendetr.layers.windows import cut, paste, positions
from tokendetr.ops import use_reference

SIZES = [(128, 128), (100, 140), (33, 70)]
"""Without padding; with; and with windows that are mostly padding."""


def assert_alike(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **tolerance)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window_bias", ["interpolated", "positions"])
def test_keeping_all_tokens_is_the_dense_backbone(size, window_bias):
    model, x = swin(), images(size)
    dense, keys = model(x), list(model.state_dict())
    transform(
        model, layers=(2, 6), keep_ratio=1.0, temperature=1e6, threshold=-1, window_bias=window_bias
    )
    assert_alike(model(x), dense, rtol=1e-3, atol=1e-3)
    assert list(model.state_dict()) == keys
    restore(model)
    assert_alike(model(x), dense, rtol=0, atol=0)
    assert {type(stage).__name__ for stage in model.layers} == {"BasicLayer"}


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", SIZES)
def test_every_method_gives_full_maps_and_leaves_earlier_stages_alone(method, size):
    model, x = swin(), images(size)
    dense = model(x)
    report = transform(model, layers=(6,), keep_ratio=9 / 16, method=method)
    assert report.restored and report.num_layers == 12 and report.layers == (6,)
    reduced = model(x)
    assert {name: p.shape for name, p in reduced.items()} == {
        name: p.shape for name, p in dense.items()
    }
    assert torch.equal(reduced["p0"], dense["p0"]) and torch.equal(reduced["p1"], dense["p1"])
    assert reduced["p2"].isfinite().all() and not torch.equal(reduced["p2"], dense["p2"])
    alone = model(x[:1])
    assert_alike(alone, {n: p[:1] for n, p in reduced.items()}, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_pruning_within_windows_is_the_plain_procedure():
    """One stage of two blocks, reduced at the first: checked with loops over windows."""
    model = swin(depths=(2,), num_heads=(2,), out_indices=(0,))
    x = images((64, 64), batch=1)
    stage = model.layers[0]
    entering = {}
    handle = stage.register_forward_pre_hook(lambda module, args: entering.update(x=args[0]))
    model(x)
    handle.remove()
    first = stage.blocks[0]
    tokens = entering["x"].unflatten(1, (16, 16))
    normed = first.norm1(tokens)
    expected = tokens.clone()
    for row in range(0, 16, 4):
        for column in range(0, 16, 4):
            window = normed[:, row : row + 4, column : column + 4].flatten(1, 2)
            attended = tokens[:, row : row + 4, column : column + 4].flatten(1, 2)
            attended = attended + first.attn(window)
            joint = first.attn.qkv(window).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            query, key, _ = joint
            index = first.attn.relative_position_index.flatten()
            bias = first.attn.relative_position_bias_table[index].view(16, 16, 2).permute(2, 0, 1)
            weights = (query @ key.transpose(2, 3) * first.attn.scale + bias).softmax(dim=-1)
            best = weights.mean(dim=1).sum(dim=1)[0].topk(9).indices.sort().values
            kept = attended[:, best]
            kept = kept + first.mlp(first.norm2(kept))
            nearest = torch.cdist(attended, attended[:, best]).argmin(dim=2)[0]
            # The second block is made the identity below.
            expected[:, row : row + 4, column : column + 4] = kept[:, nearest].unflatten(1, (4, 4))
    for layer in (stage.blocks[1].attn.proj, stage.blocks[1].mlp.fc2):
        layer.weight.zero_()
        layer.bias.zero_()
    transform(model, layers=(0,), keep_ratio=9 / 16, method="pruning")
    result = stage(entering["x"], 16, 16)[0]
    torch.testing.assert_close(result, expected.flatten(1, 2), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_lies_in_padding_reaches_nothing():
    """Windows over the edge: the zeros that fill them up must stay outside of all means."""
    model, x = swin(), images((100, 140))
    transform(model, layers=(6,), keep_ratio=0.5)
    stage = model.layers[2]
    seen = {}
    from token_transforming import windowed

    original = windowed.reduce_tokens

    def spy(tokens, how, *, recover):
        reduced = original(tokens, how, recover=recover)
        seen.update(tokens=tokens, reduced=reduced)
        return reduced

    windowed.reduce_tokens = spy
    try:
        model(x)
    finally:
        windowed.reduce_tokens = original
    valid = seen["tokens"].valid_BN
    assert valid is not None and not valid.all()
    weights = seen["reduced"].token_map.weights_BKN()
    assert (weights.transpose(1, 2)[~valid] == 0).all()
    real = seen["reduced"].valid_BK
    sizes = seen["reduced"].size_BK * real
    torch.testing.assert_close(sizes.sum(dim=1), valid.sum(dim=1).float())
    assert real.any(dim=1).all() and stage is model.layers[2]


@torch.no_grad()
def test_several_reductions_in_one_stage_compose():
    model, x = swin(), images((128, 128))
    transform(model, layers=(4, 6, 8), keep_ratio=(12 / 16, 9 / 12, 4 / 9))
    out = model(x)
    assert out["p2"].shape == (2, 64, 8, 8) and out["p2"].isfinite().all()
    assert len(out["p2"][0].flatten(1).T.unique(dim=0)) <= 4 * 4


def test_gradients_checkpointing_and_copies():
    gradients = []
    for use_checkpoint in (False, True):
        model, x = swin(use_checkpoint=use_checkpoint).train(), images((64, 96))
        transform(model, layers=(4,), keep_ratio=0.5, temperature=5.0, threshold=-1.0)
        model = copy.deepcopy(model)
        sum(p.square().sum() for p in model(x).values()).backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        assert not missing
        gradients.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)


@torch.no_grad()
@pytest.mark.slow
def test_compiling_needs_no_graph_break():
    torch.compiler.reset()
    model, x = swin(depths=(1, 1, 2, 1)), images((64, 64), batch=1)
    transform(model, layers=(2,), keep_ratio=0.5)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_alike(compiled(x), expected)
    torch.compiler.reset()


def test_window_geometry():
    x = torch.arange(2 * 6 * 8 * 3).float().view(2, 6, 8, 3)
    windows = cut(x, (3, 4))
    assert windows.shape == (8, 12, 3)
    assert torch.equal(windows[3], x[0, 3:6, 4:8].flatten(0, 1))
    assert torch.equal(paste(windows, (3, 4), (6, 8)), x)
    table = torch.randn(2, 7, 7)
    place = positions((4, 4), (4, 4), torch.device("cpu"))
    torch.testing.assert_close(window_table_bias(table, (4, 4)), position_table_bias(table, place))
    smaller = window_table_bias(table, (2, 3))
    assert smaller.shape == (1, 2, 6, 6)
    torch.testing.assert_close(smaller[0, :, 0, 0], table[:, 3, 3])


@torch.no_grad()
@pytest.mark.parametrize("window_bias", ["interpolated", "positions"])
@pytest.mark.parametrize("keep_ratio", [0.75, 9 / 16])  # windows of 4 x 3 and of 3 x 3
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_packed_attention_gives_what_attention_with_a_bias_gives(window_bias, keep_ratio, dtype):
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    model, x = swin().to(precise), images((100, 140)).to(precise)
    transform(model, layers=(4,), keep_ratio=keep_ratio, window_bias=window_bias)
    kept = model.layers[2].token_plan.reductions[0].kept_grid(4, 4)
    assert kept == ((4, 3) if keep_ratio == 0.75 else (3, 3))
    with torch.autocast("cpu", dtype, enabled=dtype != precise):
        packed = model(x)["p2"]
        with use_reference():
            plain = model(x)["p2"]
    tolerance = 1e-6 if dtype == torch.float64 else 0.06
    assert packed.isfinite().all() and not torch.equal(packed, plain)
    torch.testing.assert_close(packed, plain, rtol=tolerance, atol=tolerance)


def test_packed_attention_passes_the_gradient_of_the_bias_table():
    gradients = []
    for plain in (False, True):
        model, x = swin().double().train(), images((64, 96)).double()
        transform(model, layers=(4,), keep_ratio=0.75, temperature=5.0, threshold=-1.0)
        with use_reference() if plain else contextlib.nullcontext():
            model(x)["p2"].square().sum().backward()
        gradients.append(
            [block.attn.relative_position_bias_table.grad for block in model.layers[2].blocks]
        )
    for packed, expected in zip(*gradients, strict=True):
        assert packed.abs().sum() > 0
        torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-8)


def test_shifted_blocks_and_other_backbones_are_refused():
    model = swin()
    with pytest.raises(ValueError, match=r"block 5 .*shifted.*such as 4"):
        transform(model, layers=(5,))
    with pytest.raises(ValueError, match="class token"):
        transform(model, layers=(4,), selection="class_attention")
    with pytest.raises(ValueError, match="window_bias"):
        transform(model, layers=(4,), window_bias="none")

    class OtherSwin(SwinTransformer):
        pass

    with pytest.raises(UnsupportedModelError, match="OtherSwin"):
        transform(OtherSwin(**SETTINGS), layers=(4,))


def test_a_config_transforms_its_backbone_and_keeps_its_override_paths():
    model = zoo.get_config("dino_shapes_swin").model
    transform_backbone(model, layers=(4,), keep_ratio=0.5)
    model.backbone.token_transform.keep_ratio = 0.7
    model.backbone.embed_dim = 8
    built = instantiate(model.backbone)
    plan = built.layers[2].token_plan.reductions
    assert plan[0].keep_ratio == 0.7 and built.embed_dim == 8
    with pytest.raises(KeyError, match="backbone"):
        transform_backbone(L(SwinTransformer)(**SETTINGS))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("token_transforming/dino_swin_large_384_5scale_36ep", "transforming"),
        ("token_transforming/dino_swin_large_384_4scale_36ep", "transforming"),
        ("hourglass_dino_swin_large_384_5scale_36ep", "clustering"),
        ("dynamic_dino_swin_large_384_4scale_36ep", "transforming"),
    ],
)
def test_the_papers_detectors_reduce_windows_of_144_tokens_to_64(name, method):
    config = zoo.get_config(name)
    options = config.model.backbone.token_transform
    assert tuple(options.layers) == (12,) and options.method == method
    assert options.keep_ratio * 144 == pytest.approx(64)
    sparse = "sparsifier" in config.model.transformer.encoder
    assert sparse == name.startswith("dynamic")


def test_windows_over_the_edge_keep_their_share_and_leave_a_place_for_padding():
    assert real_tokens((16, 16), (7, 7)) == (49, 49, 14, 49, 49, 14, 14, 14, 4)
    assert kept_tokens((49, 14, 4, 48), 49, 36, "pruning") == (36, 11, 3, 35)
    assert kept_tokens((49, 14, 1), 49, 4, "merging") == (4, 2, 1)
    assert kept_tokens((16, 15), 16, 16, "transforming") == (16, 15)


@torch.no_grad()
@pytest.mark.parametrize("method", ["pruning", "merging", "fusing", "transforming"])
@pytest.mark.parametrize("keep_ratio", [0.9, 0.5, 0.2])
def test_padding_is_not_fed_through_the_network(monkeypatch, method, keep_ratio):
    """The number of real tokens is known from the geometry alone; here it is counted."""
    model, x = swin(window_size=7), images((256, 200))
    transform(model, layers=(4,), keep_ratio=keep_ratio, method=method)
    counted = []
    from token_transforming import windowed

    original = windowed._feed

    def spy(block, x_BHWC, state, kind):
        if state.real is not None:
            batches = len(state.valid_GT) // len(state.real)
            counted.append((sum(state.real) * batches, int(state.valid_GT.sum())))
        return original(block, x_BHWC, state, kind)

    monkeypatch.setattr(windowed, "_feed", spy)
    model(x)
    assert counted and all(expected == found for expected, found in counted)
