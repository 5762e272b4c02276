"""Small detectors with Focus-DETR in their encoder."""

import torch
from torch import nn

from focus_detr import FocusSparsifier
from tests.small_detectors import LAYERS, LEVELS, WIDTH, build, sizes
from tokendetr.encoder import TokenEncoder
from tokendetr.encoder.forward_context import observe

STRIDES = (8, 16, 32)


def focus_sparsifier(**options) -> FocusSparsifier:
    defaults = {
        "embed_dim": WIDTH,
        "num_heads": 2,
        "num_layers": LAYERS,
        "num_levels": LEVELS,
        "strides": STRIDES,
        "num_objects": 7,
        "keep_ratio": 0.4,
    }
    return FocusSparsifier(**{**defaults, **options})


def put_into(model: nn.Module, sparsifier: FocusSparsifier | None) -> nn.Module:
    """Replace a model's encoder by one with the same weights and a sparsifier; observe it."""
    weights = model.transformer.encoder.state_dict()
    encoder = TokenEncoder(**sizes(), sparsifier=sparsifier)
    encoder.load_state_dict(weights, strict=False)
    model.transformer.encoder = encoder
    return observe(model)


def focus_model(name: str = "dino", **options) -> nn.Module:
    """Build a detector by name; the method's own weights are random and larger than usual."""
    model = put_into(build(name), None)
    torch.manual_seed(1)
    sparsifier = focus_sparsifier(**options)
    with torch.no_grad():
        for parameter in sparsifier.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.transformer.encoder.sparsifier = sparsifier
    return model
