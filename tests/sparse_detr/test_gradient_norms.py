"""Gradient norms by encoder layer are those of all of its parameters."""

import pytest
import torch

from benchmarks.gradient_norms import layer_norms
from tests.sparse_detr.sparse_detectors import RECORDS, sparse


def test_norms_are_those_of_all_parameters_of_a_layer():
    model = sparse().train()
    torch.manual_seed(0)
    found = layer_norms(model, [RECORDS])
    torch.manual_seed(0)
    model.zero_grad()
    sum(model(RECORDS).values()).backward()
    for norm, layer in zip(found, model.transformer.encoder.layers, strict=True):
        squares = [float(p.grad.double().square().sum()) for p in layer.parameters()]
        assert norm == pytest.approx(sum(squares) ** 0.5, rel=1e-4) and norm > 0
