"""Configs of Sparse DETR: complete, consistent, and of any depth."""

from pathlib import Path

import pytest
from detectron2.config import LazyConfig, instantiate

from sparse_detr import SparseSparsifier
from tokendetr.compat.meta import meta_device
from tokendetr.config.overrides import apply_overrides
from tokendetr.encoder.forward_context import observe

CONFIGS = Path(__file__).resolve().parents[2] / "projects" / "sparse_detr" / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("sparse_*.py"))
SPARSIFIER = "model.transformer.encoder.sparsifier"


def load(name: str, *overrides: str):
    config = LazyConfig.load(str(CONFIGS / f"{name}.py"))
    apply_overrides(config, list(overrides))
    return config


def sparsifier_of(config) -> SparseSparsifier:
    with meta_device():
        encoder = instantiate(config.model.transformer.encoder)
    assert len(encoder.layers) == encoder.sparsifier.num_layers
    return encoder.sparsifier


def test_every_detector_has_a_config():
    hosts = ("dino", "deformable_detr", "dab_deformable_detr", "dn_deformable_detr", "h_deformable")
    for host in hosts:
        assert any(name.startswith(f"sparse_{host}_") for name in NAMES)
    for backbone in ("r50", "swin_tiny", "swin_base"):
        assert f"sparse_deformable_detr_{backbone}_50ep" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_complete_and_its_sparsifier_fits_the_detector(name):
    config = load(name)
    assert config.train.output_dir == f"./output/{name}"
    sparsifier = sparsifier_of(config)
    assert sparsifier.keep_ratio == 0.3
    assert len(sparsifier.class_embed) == sparsifier.num_layers - 1
    head = sparsifier.class_embed[0]
    assert head.out_features == config.model.num_classes
    assert head.in_features == config.model.transformer.encoder.embed_dim
    one_stage = not config.model.get("as_two_stage", "dino" in name)
    assert sparsifier.has_projection == (one_stage and sparsifier.selection != "random")


@pytest.mark.parametrize("layers", [6, 9, 12])
def test_the_encoders_depth_is_one_override(layers):
    config = load(
        "sparse_deformable_detr_swin_tiny_50ep",
        f"model.transformer.encoder.num_layers={layers}",
        f"{SPARSIFIER}.keep_ratio=0.1",
        "model.num_classes=20",
    )
    sparsifier = sparsifier_of(config)
    assert (sparsifier.num_layers, len(sparsifier.bbox_embed)) == (layers, layers - 1)
    assert sparsifier.class_embed[0].out_features == 20
    assert sparsifier.keep_ratio == 0.1


def test_the_published_schedule():
    config = load("sparse_deformable_detr_r50_50ep")
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (2e-4, 1e-4)
    factors = config.optimizer.params.lr_factor_func.factors
    assert factors == {"backbone": 0.1, "reference_points": 0.1, "sampling_offsets": 0.1}
    assert config.dataloader.train.total_batch_size == 16
    assert config.train.clip_grad.params.max_norm == 0.1
    assert config.train.max_iter == 50 * 7500
    weights = config.model.criterion.weight_dict
    assert [weights[f"loss_{name}_enc"] for name in ("class", "bbox", "giou")] == [2.0, 5.0, 2.0]


def test_the_detector_opens_its_own_pass_and_boxes_of_the_heads_start_as_proposals():
    config = load("sparse_dino_shapes")
    config.model.device = "cpu"
    model = instantiate(config.model)
    assert not observe(model)._forward_pre_hooks
    for head in model.transformer.encoder.sparsifier.bbox_embed:
        assert not any(parameter.any() for parameter in head.layers[-1].parameters())


def test_the_papers_rows_without_and_with_a_dense_encoder():
    sizes = {}
    for name in ("deformable_detr_r50_no_encoder_50ep", "deformable_detr_r50_dense_50ep"):
        config = load(name)
        assert config.train.output_dir == f"./output/{name}"
        config.model.device = "cpu"
        model = instantiate(config.model)
        sizes[name] = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    assert sizes["deformable_detr_r50_no_encoder_50ep"] == pytest.approx(36, abs=0.5)
    assert sizes["deformable_detr_r50_dense_50ep"] == pytest.approx(40.8, abs=0.3)
