"""Small Swin Transformers with random weights, and images for them."""

import torch
from detectron2.modeling.backbone import SwinTransformer

SETTINGS = {
    "embed_dim": 16,
    "depths": (2, 2, 6, 2),
    "num_heads": (1, 2, 4, 8),
    "window_size": 4,
    "drop_path_rate": 0.0,
}


def swin(**changes) -> SwinTransformer:
    torch.manual_seed(0)
    model = SwinTransformer(**{**SETTINGS, **changes})
    for parameter in model.parameters():
        # Initial weights make all tokens similar, attention uniform and biases zero.
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def images(size, batch=2) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
