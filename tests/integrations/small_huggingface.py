"""Models of Hugging Face transformers of a few thousand parameters, with distinct heads."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    SwinConfig,
)

CLASSES = 5
BACKBONE = {
    "embedding_size": 8,
    "hidden_sizes": [8, 12, 16, 24],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
LAYERS = {
    "d_model": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "num_queries": 10,
    "num_labels": CLASSES,
}


def with_spread_weights(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def deformable_detr(**options) -> nn.Module:
    config = DeformableDetrConfig(
        **{"backbone_config": ResNetConfig(**BACKBONE), "encoder_layers": 2, **LAYERS, **options}
    )
    return with_spread_weights(DeformableDetrForObjectDetection(config))


def real_time(model: type, config: type, **options) -> nn.Module:
    made = config(
        backbone_config=RTDetrResNetConfig(**BACKBONE),
        encoder_hidden_dim=32,
        encoder_in_channels=[12, 16, 24],
        decoder_in_channels=[32, 32, 32],
        encoder_layers=1,
        num_denoising=0,
        **LAYERS,
        **options,
    )
    return with_spread_weights(model(made))


def mask2former() -> nn.Module:
    backbone = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=2,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=8,
        num_labels=CLASSES,
    )
    return with_spread_weights(Mask2FormerForUniversalSegmentation(config))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "deformable_detr": deformable_detr,
    "deformable_detr_two_stage": lambda: deformable_detr(
        with_box_refine=True, two_stage=True, two_stage_num_proposals=10
    ),
    "rt_detr": lambda: real_time(RTDetrForObjectDetection, RTDetrConfig),
    "rt_detr_v2": lambda: real_time(RTDetrV2ForObjectDetection, RTDetrV2Config),
    "d_fine": lambda: real_time(DFineForObjectDetection, DFineConfig, decoder_n_points=[3, 6, 3]),
    "mask2former": mask2former,
}
ATTENTIONS = {"rt_detr": 2, "rt_detr_v2": 2, "d_fine": 2, "mask2former": 2}
"""Deformable attentions of a model; 4 where it is not listed."""


def build(name: str) -> nn.Module:
    """Build a model by name, with reproducible random weights."""
    torch.manual_seed(0)
    return MODELS[name]()
