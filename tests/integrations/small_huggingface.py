"""Models of Hugging Face transformers of a few thousand parameters, with distinct heads."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    Deimv2Config,
    Deimv2ForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
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
SWIN = SwinConfig(
    embed_dim=8,
    depths=[1, 1, 1, 1],
    num_heads=[1, 1, 2, 2],
    window_size=4,
    out_features=["stage1", "stage2", "stage3", "stage4"],
)
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
MASKED_LAYERS = {
    "backbone_config": SWIN,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "dim_feedforward": 32,
    "num_queries": 8,
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


class Prompted(nn.Module):
    """A model that also takes text, with the same text for every image."""

    def __init__(self, model: nn.Module, **text: Tensor) -> None:
        super().__init__()
        self.model = model
        self.text = text

    def forward(self, images: Tensor) -> object:
        text = {name: value.expand(len(images), -1) for name, value in self.text.items()}
        return self.model(images, **text)


def grounding_dino() -> nn.Module:
    text = BertConfig(
        vocab_size=2000,  # it looks for the separators, tokens up to 1029
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    config = GroundingDinoConfig(
        backbone_config=ResNetConfig(**BACKBONE),
        text_config=text,
        encoder_layers=2,
        **{name: value for name, value in LAYERS.items() if name != "num_labels"},
    )
    prompt = torch.tensor([[101, 7, 8, 1012, 9, 1012, 102]])
    model = with_spread_weights(GroundingDinoForObjectDetection(config))
    return Prompted(model, input_ids=prompt, attention_mask=torch.ones_like(prompt))


def oneformer() -> nn.Module:
    config = OneFormerConfig(task_seq_len=7, conv_dim=32, mask_dim=32, **MASKED_LAYERS)
    model = with_spread_weights(OneFormerForUniversalSegmentation(config))
    return Prompted(model, task_inputs=torch.arange(7.0)[None])


def mask2former() -> nn.Module:
    config = Mask2FormerConfig(feature_size=32, mask_feature_size=32, **MASKED_LAYERS)
    return with_spread_weights(Mask2FormerForUniversalSegmentation(config))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "deformable_detr": deformable_detr,
    "deformable_detr_two_stage": lambda: deformable_detr(
        with_box_refine=True, two_stage=True, two_stage_num_proposals=10
    ),
    "rt_detr": lambda: real_time(RTDetrForObjectDetection, RTDetrConfig),
    "rt_detr_v2": lambda: real_time(RTDetrV2ForObjectDetection, RTDetrV2Config),
    "d_fine": lambda: real_time(DFineForObjectDetection, DFineConfig, decoder_n_points=[3, 6, 3]),
    "deimv2": lambda: real_time(Deimv2ForObjectDetection, Deimv2Config),
    "mask2former": mask2former,
    "oneformer": oneformer,
    "grounding_dino": grounding_dino,
}
ATTENTIONS = dict.fromkeys(
    ("rt_detr", "rt_detr_v2", "d_fine", "deimv2", "mask2former", "oneformer"), 2
)
"""Deformable attentions of a model; 4 where it is not listed."""


def build(name: str) -> nn.Module:
    """Build a model by name, with reproducible random weights."""
    torch.manual_seed(0)
    return MODELS[name]()
