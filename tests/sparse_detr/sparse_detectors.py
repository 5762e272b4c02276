"""Small detectors whose encoder has Sparse DETR's sparsifier."""

import torch
from torch import nn

from sparse_detr import SparseSparsifier
from tests.small_detectors import CLASSES, LAYERS, WIDTH, build, record
from tokendetr.encoder.forward_context import observe

RECORDS = [
    record(96, 128, [[8, 8, 60, 50], [30, 20, 90, 80]], seed=1),
    record(64, 80, [[10, 10, 40, 40]], seed=2),
]


def sparse(name: str = "dino", *, seed: int = 5, detector: dict | None = None, **options):
    """Build an observed small detector with random weights that keeps some of its tokens."""
    model = build(name, **(detector or {}))
    torch.manual_seed(seed)
    sparsifier = SparseSparsifier(
        **{
            "keep_ratio": 0.3,
            "embed_dim": WIDTH,
            "num_classes": CLASSES,
            "num_layers": LAYERS,
            **options,
        }
    )
    with torch.no_grad():
        for parameter in sparsifier.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.transformer.encoder.sparsifier = sparsifier
    return observe(model)


def run_encoder(model: nn.Module, records: list[dict]) -> torch.Tensor:
    """Return the encoder's output in a forward pass of the whole detector."""
    seen = []
    hook = model.transformer.encoder.register_forward_hook(
        lambda module, args, output: seen.append(output)
    )
    try:
        model(records)
    finally:
        hook.remove()
    return seen[0]
