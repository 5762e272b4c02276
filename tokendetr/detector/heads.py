"""Class and box heads, one pair per decoder layer, and their predictions.

Shapes: B image, Q query, S decoder layer, V class.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from detrex.layers import MLP
from torch import nn

from tokendetr.detector.queries import DecodedQueries, Predictions
from tokendetr.detector.refinement import refine_boxes
from tokendetr.layers.precision import at_least_float32

PRIOR_PROBABILITY = 0.01  # of a query showing an object, at initialization (focal loss paper, 4.1)
FIRST_SIZE_LOGIT = -2.0  # sigmoid(-2) = 0.12 of the image: first size if no proposal gives one


def build_heads(
    *, embed_dim: int, num_classes: int, count: int, shared: bool, sized_references: bool
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Build class heads and box heads with their initial weights.

    Args:
        embed_dim: width of the decoder's states.
        num_classes: number of classes.
        count: number of each (decoder layers, plus one for the encoder's proposals).
        shared: one pair of heads under ``count`` names instead of ``count`` pairs.
        sized_references: references carry width and height from the start, so offsets start at
            zero.
    """
    class_head = nn.Linear(embed_dim, num_classes)
    nn.init.constant_(class_head.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
    box_head = MLP(embed_dim, embed_dim, 4, 3)
    start_at_references([box_head])
    class_heads = [class_head if shared else copy.deepcopy(class_head) for _ in range(count)]
    box_heads = [box_head if shared else copy.deepcopy(box_head) for _ in range(count)]
    if not sized_references:
        _, bias = box_heads[0].layers[-1].parameters()
        nn.init.constant_(bias.data[2:], FIRST_SIZE_LOGIT)
    return nn.ModuleList(class_heads), nn.ModuleList(box_heads)


def start_at_references(box_heads: Iterable[nn.Module]) -> None:
    """Zero the box heads' last layer, so that boxes start as the references that they refine."""
    for head in box_heads:
        for parameter in head.layers[-1].parameters():  # type: ignore[union-attr, index]
            nn.init.zeros_(parameter)


def predict(
    decoded: DecodedQueries, class_heads: nn.ModuleList, box_heads: nn.ModuleList, num_layers: int
) -> Predictions:
    """Apply each decoder layer's heads to its state.

    Args:
        decoded: the decoder's output.
        class_heads: at least ``num_layers`` heads; layer i uses head i.
        box_heads: as ``class_heads``.
        num_layers: decoder layers; ``decoded`` holds the last of them.
    """
    first = num_layers - len(decoded.states)
    logits, boxes = [], []
    for index, (state_BQC, reference_BQX) in enumerate(
        zip(decoded.states, decoded.references, strict=True), start=first
    ):
        logits.append(at_least_float32(class_heads[index](state_BQC)))
        offsets_BQ4 = box_heads[index](state_BQC)
        boxes.append(refine_boxes(offsets_BQ4, reference_BQX, edge=decoded.reference_edge))
    return Predictions(torch.stack(logits), torch.stack(boxes), decoded.valid_BQ)
