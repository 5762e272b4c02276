"""Small Hugging Face models, built offline from their configs."""

import pytest
import torch

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (pip install -r requirements-dev.txt)"
)

SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "image_size": 48,
    "patch_size": 8,
}
"""36 patches, 6 blocks."""


def build(kind: str, **changes) -> torch.nn.Module:
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        DeiTConfig,
        DeiTModel,
        Dinov2Backbone,
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        DPTConfig,
        DPTForDepthEstimation,
        ViTConfig,
        ViTForImageClassification,
        ViTModel,
    )

    torch.manual_seed(0)
    settings = {**SIZES, **changes}
    mlp = {"intermediate_size": 96}
    dpt = {
        "backbone_out_indices": [1, 2, 4, 5],
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
        "intermediate_size": 96,
    }
    model = {
        "vit": lambda: ViTModel(ViTConfig(**settings, **mlp), add_pooling_layer=False),
        "vit_classifier": lambda: ViTForImageClassification(ViTConfig(**settings, **mlp)),
        "deit": lambda: DeiTModel(DeiTConfig(**settings, **mlp), add_pooling_layer=False),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**settings, mlp_ratio=2)),
        "dinov2_backbone": lambda: Dinov2Backbone(
            Dinov2Config(**settings, mlp_ratio=2, out_features=["stage2", "stage4", "stage6"])
        ),
        "dinov2_registers": lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**settings, mlp_ratio=2, num_register_tokens=3)
        ),
        "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**settings, **mlp)),
        "dpt": lambda: DPTForDepthEstimation(DPTConfig(**settings, **dpt)),
    }[kind]()
    for parameter in model.parameters():
        # Initial weights make all tokens similar and attention uniform.
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    return model.eval()


PREFIX = {
    "vit": 1,
    "vit_classifier": 1,
    "deit": 2,
    "dinov2": 1,
    "dinov2_backbone": 1,
    "dinov2_registers": 4,
    "clip": 1,
    "dpt": 1,
}


def images(batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, 48, 48, generator=torch.Generator().manual_seed(seed))


def tokens_of(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).last_hidden_state
