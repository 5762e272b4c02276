"""Offsets and references to boxes, against the formula written out per number."""

import math

import pytest
import torch

from tokendetr.detector import refine_boxes


def logit(p: float) -> float:
    p = min(max(p, 0.0), 1.0)
    return math.log(max(p, 1e-3) / max(1 - p, 1e-3))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("dims", [2, 4])
def test_refinement_adds_offsets_in_logit_space(dims):
    torch.manual_seed(0)
    offsets = torch.randn(2, 3, 4, dtype=torch.float64)
    reference = torch.rand(2, 3, dims, dtype=torch.float64)
    reference[0, 0] = 0.0
    reference[0, 1] = 1.0
    boxes = refine_boxes(offsets, reference)
    for image in range(2):
        for query in range(3):
            for i in range(4):
                anchor = logit(float(reference[image, query, i])) if i < dims else 0.0
                expected = sigmoid(float(offsets[image, query, i]) + anchor)
                assert float(boxes[image, query, i]) == pytest.approx(expected, rel=1e-9)


def test_half_precision_offsets_give_boxes_of_the_references_precision():
    offsets = torch.zeros(1, 1, 4, dtype=torch.bfloat16)
    reference = torch.tensor([[[0.3, 0.4, 0.1, 0.2]]])
    boxes = refine_boxes(offsets, reference)
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes, reference)


def test_inputs_are_left_alone():
    offsets, reference = torch.ones(1, 2, 4), torch.full((1, 2, 2), 0.5)
    refine_boxes(offsets, reference)
    assert (offsets == 1).all()
    assert (reference == 0.5).all()
