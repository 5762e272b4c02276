"""Denoising queries: noised ground truth to restore, which the matching queries cannot see.

Dimensions: B image, G group, P = 2 (positive, negative), M largest number of boxes in an image,
D = G * P * M denoising queries, Q matching queries, C channel, K class.

Source: DN-DETR, section 3; DINO, section 3.3 (contrastive pairs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from detrex.layers import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from detrex.utils import inverse_sigmoid
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from tokendetr.detector.queries import Predictions
from tokendetr.detector.targets import Target


@dataclass(frozen=True)
class DenoisingQueries:
    """Extra queries in front of the matching ones; all groups have the same number of places.

    Attributes:
        content_BDC: label embeddings; zero at places without a box.
        reference_BD4: noised boxes cxcywh, 0..1; 0.5 at places without a box.
        num_groups: G.
        group_size: places per group, P * M.
    """

    content_BDC: Tensor
    reference_BD4: Tensor
    num_groups: int
    group_size: int

    @property
    def num_queries(self) -> int:
        """D, the denoising queries of an image, empty places included."""
        return self.num_groups * self.group_size

    def blocked_pairs(self, num_matching: int) -> Tensor:
        """Self-attention mask [D + Q, D + Q], True where the row must not see the column.

        A denoising query sees its own group and the matching queries; a matching query sees only
        matching queries, so that no ground truth leaks into what is evaluated.
        """
        device = self.content_BDC.device
        groups = torch.arange(self.num_groups, device=device).repeat_interleave(self.group_size)
        group_of = torch.cat([groups, groups.new_full((num_matching,), -1)])
        return (group_of[None, :] >= 0) & (group_of[None, :] != group_of[:, None])


def pad_targets(targets: list[Target]) -> tuple[Tensor, Tensor, Tensor]:
    """Ground truth of a batch as rectangles: labels_BM, boxes_BM4 (cxcywh) and valid_BM."""
    labels_BM = pad_sequence([t["labels"] for t in targets], batch_first=True)
    boxes_BM4 = pad_sequence([t["boxes"] for t in targets], batch_first=True)
    counts_B = torch.tensor([len(t["labels"]) for t in targets], device=labels_BM.device)
    places_M = torch.arange(labels_BM.shape[1], device=labels_BM.device)
    return labels_BM, boxes_BM4, places_M[None] < counts_B[:, None]


def flip_labels(labels: Tensor, probability: float, num_classes: int) -> Tensor:
    """Replace each label, with the given probability, by a class drawn uniformly from all
    classes."""
    chosen = torch.rand(labels.shape, device=labels.device) < probability
    return torch.where(chosen, torch.randint_like(labels, num_classes), labels)


def shift_corners(boxes_cxcywh: Tensor, distance: Tensor, scale: float) -> Tensor:
    """Move every corner coordinate by ``distance * scale`` half sizes, with a random sign.

    Args:
        boxes_cxcywh: [..., 4], fractions of the image.
        distance: [..., 4], in half widths (x) and half heights (y); 0..1 stays nearer to its own
            box than 1..2 does.
        scale: the noise scale lambda.

    Returns:
        Boxes cxcywh [..., 4] inside the image. Width or height is negative where corners crossed.
    """
    half_size = boxes_cxcywh[..., [2, 3, 2, 3]] / 2
    sign = torch.randint(0, 2, distance.shape, device=distance.device).to(distance) * 2 - 1
    corners = box_cxcywh_to_xyxy(boxes_cxcywh) + sign * distance * half_size * scale
    return box_xyxy_to_cxcywh(corners.clamp(0.0, 1.0))


def shift_and_scale(boxes_cxcywh: Tensor, scale: float) -> Tensor:
    """DN-DETR's box noise: shift the centre by up to ``scale`` half sizes and stretch or shrink
    each side by up to ``scale`` of itself, uniformly.

    Args:
        boxes_cxcywh: [..., 4], fractions of the image.
        scale: lambda of the paper, 0..1; below 1 the centre stays inside the box.

    Returns:
        Boxes cxcywh [..., 4], every number clamped to 0..1.
    """
    reach = boxes_cxcywh[..., [2, 3, 2, 3]] * boxes_cxcywh.new_tensor([0.5, 0.5, 1.0, 1.0])
    noise = torch.rand_like(boxes_cxcywh) * 2 - 1
    return (boxes_cxcywh + noise * reach * scale).clamp(0.0, 1.0)


def noised_queries(
    targets: list[Target],
    label_embedding: nn.Embedding,
    *,
    num_classes: int,
    denoising_groups: int,
    label_noise_prob: float,
    box_noise_scale: float,
    with_indicator: bool,
) -> DenoisingQueries | None:
    """DN-DETR's denoising: each group holds every box once, noised on its own.

    Args:
        targets: per image ``labels`` [n] and ``boxes`` [n, 4].
        label_embedding: at least one row per class.
        num_classes: K; flipped labels are drawn from these.
        denoising_groups: G; 0 turns denoising off.
        label_noise_prob: probability that a label is drawn anew, 0..1.
        box_noise_scale: see :func:`shift_and_scale`.
        with_indicator: append a channel of ones, which tells denoising queries from matching ones.

    Returns:
        The queries, or None when denoising is off or no image of the batch has a box.
    """
    largest = max(len(target["labels"]) for target in targets)
    if denoising_groups <= 0 or largest == 0:
        return None
    labels_BM, boxes_BM4, valid_BM = pad_targets(targets)
    labels_BD = flip_labels(labels_BM.repeat(1, denoising_groups), label_noise_prob, num_classes)
    noised_BD4 = shift_and_scale(boxes_BM4.repeat(1, denoising_groups, 1), box_noise_scale)
    valid_BD1 = valid_BM.repeat(1, denoising_groups)[..., None]
    content_BDC = pad(label_embedding(labels_BD), (0, int(with_indicator)), value=1.0)
    return DenoisingQueries(
        content_BDC=content_BDC.where(valid_BD1, content_BDC.new_zeros(())),
        reference_BD4=inverse_sigmoid(noised_BD4).sigmoid().masked_fill(~valid_BD1, 0.5),
        num_groups=denoising_groups,
        group_size=largest,
    )


def contrastive_queries(
    targets: list[Target],
    label_embedding: nn.Embedding,
    *,
    dn_number: int,
    label_noise_ratio: float,
    box_noise_scale: float,
) -> DenoisingQueries | None:
    """DINO's contrastive denoising: each group holds every box once slightly and once strongly
    noised.

    The number of groups makes about ``dn_number`` positive queries for the image with the most
    boxes. Labels of both are flipped with probability ``label_noise_ratio / 2``. Corners move by
    up to ``box_noise_scale`` half sizes for positives and by one to two times that for negatives.

    Args:
        targets: per image ``labels`` [n] and ``boxes`` [n, 4].
        label_embedding: one row per class.
        dn_number: wanted positive queries per image; 0 turns denoising off.
        label_noise_ratio: 0..1.
        box_noise_scale: lambda of the paper, >= 0.

    Returns:
        The queries, or None when denoising is off or no image of the batch has a box.
    """
    largest = max(len(target["labels"]) for target in targets)
    if dn_number <= 0 or largest == 0:
        return None
    num_groups = max(1, dn_number // largest)
    labels_BM, boxes_BM4, valid_BM = pad_targets(targets)

    def per_place(values_BMX: Tensor) -> Tensor:
        return values_BMX[:, None, None].expand(-1, num_groups, 2, *values_BMX.shape[1:])

    labels_BGPM = flip_labels(
        per_place(labels_BM), label_noise_ratio / 2, label_embedding.num_embeddings
    )
    boxes_BGPM4 = per_place(boxes_BM4)
    distance = torch.rand_like(boxes_BGPM4) + boxes_BGPM4.new_tensor([0.0, 1.0])[:, None, None]
    noised = shift_corners(boxes_BGPM4, distance, box_noise_scale)
    valid_BGPM1 = per_place(valid_BM)[..., None]
    content = label_embedding(labels_BGPM)
    content = content.where(valid_BGPM1, content.new_zeros(()))
    reference = inverse_sigmoid(noised).sigmoid().masked_fill(~valid_BGPM1, 0.5)
    return DenoisingQueries(
        content_BDC=content.flatten(1, 3),
        reference_BD4=reference.flatten(1, 3),
        num_groups=num_groups,
        group_size=2 * largest,
    )


def split_denoising(
    predictions: Predictions, denoising: DenoisingQueries | None, *, aux: bool
) -> tuple[Predictions, dict[str, Any] | None]:
    """Part the matching queries' predictions from those of the denoising queries in front of them.

    Returns:
        The matching queries' predictions, and what ``DenoisingCriterion`` takes as ``dn_metas``
        (None without denoising).
    """
    if denoising is None:
        return predictions, None
    known = predictions[: denoising.num_queries]
    dn_metas = {
        "single_padding": denoising.group_size,
        "dn_num": denoising.num_groups,
        "output_known_lbs_bboxes": Predictions(known.logits_SBQK, known.boxes_SBQ4).as_outputs(
            aux=aux
        ),
    }
    return predictions[denoising.num_queries :], dn_metas


def attach_unused(predictions: Predictions, embedding: nn.Embedding) -> Predictions:
    """Make a label embedding part of the graph, with gradient zero.

    Distributed training needs every parameter in every process' graph, also where a process has no
    box to denoise in this iteration.
    """
    nothing = 0.0 * embedding.weight[0, 0]
    return Predictions(
        predictions.logits_SBQK + nothing, predictions.boxes_SBQ4, predictions.valid_BQ
    )
