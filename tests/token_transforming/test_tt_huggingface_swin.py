"""Transforming Hugging Face's Swin within its windows."""

import copy

import pytest
import torch

from tests.token_transforming.small_swins import images, swin
from token_transforming import METHODS, UnsupportedModelError, fit_recovery, restore, transform

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (pip install -r requirements-dev.txt)"
)
SIZES = [(128, 128), (100, 140)]
"""Without padding of windows, and with."""


def build(kind: str = "SwinBackbone", **changes) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.SwinConfig(
        image_size=128,
        embed_dim=16,
        depths=[2, 2, 6, 2],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        **changes,
    )
    model = getattr(transformers, kind)(config)
    for parameter in model.parameters():
        # Initial weights make all tokens similar, attention uniform and biases zero.
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def maps(model, x) -> list[torch.Tensor]:
    return list(model(x).feature_maps)


def copy_weights(ours, theirs) -> None:
    """Give detectron2's Swin the weights of Hugging Face's backbone."""
    model, state = theirs.swin, {}
    embeddings = model.embeddings
    state |= {f"patch_embed.norm.{k}": v for k, v in embeddings.norm.state_dict().items()}
    projection = embeddings.patch_embeddings.projection
    state |= {f"patch_embed.proj.{k}": v for k, v in projection.state_dict().items()}
    for number, stage in enumerate(model.encoder.layers):
        for index, block in enumerate(stage.blocks):
            attention, name = block.attention, f"layers.{number}.blocks.{index}"
            table = attention.relative_position_bias.relative_position_bias_table
            state[f"{name}.attn.relative_position_bias_table"] = table
            parts = attention.q_proj, attention.k_proj, attention.v_proj
            for kind in ("weight", "bias"):
                state[f"{name}.attn.qkv.{kind}"] = torch.cat([getattr(p, kind) for p in parts])
            for own, part in (
                ("attn.proj", attention.o_proj),
                ("norm1", block.layernorm_before),
                ("norm2", block.layernorm_after),
                ("mlp.fc1", block.mlp.fc1),
                ("mlp.fc2", block.mlp.fc2),
            ):
                state |= {f"{name}.{own}.{k}": v for k, v in part.state_dict().items()}
        if stage.downsample is not None:
            merging = stage.downsample.state_dict()
            state |= {f"layers.{number}.downsample.{k}": v for k, v in merging.items()}
        norm = theirs.hidden_states_norms[f"stage{number + 1}"]
        state |= {f"norm{number}.{k}": v for k, v in norm.state_dict().items()}
    assert not ours.load_state_dict(state, strict=False).unexpected_keys


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_keeping_all_tokens_is_the_dense_backbone(size, implementation):
    model, x = build(attn_implementation=implementation), images(size)
    dense, keys = maps(model, x), list(model.state_dict())
    transform(model, layers=(2, 6), keep_ratio=1.0, temperature=1e6, threshold=-1)
    for ours, theirs in zip(maps(model, x), dense, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert list(model.state_dict()) == keys
    restore(model)
    assert all(torch.equal(a, b) for a, b in zip(maps(model, x), dense, strict=True))
    assert {type(stage).__name__ for stage in model.swin.encoder.layers} == {"SwinStage"}


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_what_detectron2s_swin_of_the_same_weights_gives(method):
    theirs, ours = build(), swin(norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-5))
    copy_weights(ours, theirs)
    for size in SIZES:
        x, options = images(size), {"layers": (4, 6), "keep_ratio": 9 / 16, "method": method}
        reports = [transform(model, **options) for model in (theirs, ours)]
        assert reports[0].layers == reports[1].layers and reports[0].num_layers == 12
        found = zip(maps(theirs, x), ours(x).values(), strict=True)
        for one, other in found:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_models_that_contain_one_are_transformed_too():
    x = images((128, 128))
    for kind in ("SwinModel", "SwinForImageClassification"):
        model = build(kind)
        dense = model(x)[0]
        transform(model, layers=(4,), keep_ratio=9 / 16)
        reduced = model(x, output_hidden_states=True)
        assert reduced[0].shape == dense.shape and not torch.equal(reduced[0], dense)
        assert len(reduced.hidden_states) == 5
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x)[0], reduced[0])
        with pytest.raises(ValueError, match="no attention weights"):
            model(x, output_attentions=True)
        assert torch.equal(restore(model)(x)[0], dense)


def test_checkpointed_training_gives_the_same_gradients():
    x, gradients = images((128, 128)), []
    for checkpointed in (False, True):
        model = build().train()
        transform(model, layers=(4,), keep_ratio=9 / 16)
        if checkpointed:
            model.activation_checkpointing_enable()
        sum(map_BCHW.square().mean() for map_BCHW in maps(model, x)).backward()
        gradients.append(model.swin.embeddings.patch_embeddings.projection.weight.grad)
    torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_affine_recovery_is_fitted_in_its_blocks():
    model, batches = build(), [images((128, 128)), images((128, 96)), images((96, 128))]
    transform(model, layers=(4,), keep_ratio=9 / 16, recovery="affine")
    (error,) = fit_recovery(model, batches[:2], batches[2:])
    assert 0 < error < 1
    assert any("token_recovery" in key for key in model.state_dict())
    restore(model)
    assert not any("token_recovery" in key for key in model.state_dict())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="block 5 of SwinModel has shifted windows"):
        transform(build(), layers=(5,))
    with pytest.raises(UnsupportedModelError, match="transformers: SwinModel"):
        transform(torch.nn.Linear(2, 2))
