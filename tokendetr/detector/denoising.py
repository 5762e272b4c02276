"""Denoising queries: noised ground truth to be restored, hidden from the matching queries.

Shapes: B image, G group, P = 2 (positive, negative), T box of the batch, M largest number of
boxes in an image, X copy (G, or G * P), D = X * M denoising queries, Q matching queries, C channel,
V class.

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

    def attention_mask(self, num_matching: int) -> Tensor:
        """Return the self-attention mask, bool [D + Q, D + Q].

        As in PyTorch's ``attn_mask``, True blocks: the row's query must not attend to the column's.
        A denoising query attends to its own group and to the matching queries; a matching query
        attends to matching queries alone, so that no ground truth leaks into them.
        """
        device = self.content_BDC.device
        groups = torch.arange(self.num_groups, device=device).repeat_interleave(self.group_size)
        group_of = torch.cat([groups, groups.new_full((num_matching,), -1)])
        return (group_of[None, :] >= 0) & (group_of[None, :] != group_of[:, None])


@dataclass(frozen=True)
class _GroundTruth:
    """All boxes of a batch in a row, image by image, with the image and place of each.

    Noise is drawn for the boxes alone, not for empty places, and copy by copy: that is the order of
    detrex's code, so equal seeds give detrex's noise.
    """

    labels_T: Tensor
    boxes_T4: Tensor
    image_T: Tensor
    place_T: Tensor
    num_images: int
    most: int

    def scattered(self, values_XTC: Tensor, fill: float) -> Tensor:
        """Return values [..., T, C] of copies of the boxes as [B, (...) * M, C], else ``fill``."""
        copies = values_XTC.flatten(0, -3)
        shape = (self.num_images, len(copies), self.most, copies.shape[-1])
        out_BXMC = copies.new_full(shape, fill)
        out_BXMC[self.image_T, :, self.place_T] = copies.transpose(0, 1)
        return out_BXMC.flatten(1, 2)


def _ground_truth(targets: list[Target]) -> _GroundTruth:
    counts = [len(target["labels"]) for target in targets]
    labels_T = torch.cat([target["labels"] for target in targets])
    images = [torch.full((count,), image) for image, count in enumerate(counts)]
    return _GroundTruth(
        labels_T=labels_T,
        boxes_T4=torch.cat([target["boxes"] for target in targets]),
        image_T=torch.cat(images).to(labels_T.device),
        place_T=torch.cat([torch.arange(count) for count in counts]).to(labels_T.device),
        num_images=len(targets),
        most=max(counts),
    )


def flip_labels(labels: Tensor, probability: float, num_classes: int) -> Tensor:
    """Replace each label, with the given probability, by a class drawn uniformly.

    All classes are drawn from, also the label's own.
    """
    if probability <= 0:
        return labels
    # One class per chosen label, as in detrex: drawing for all labels would spare a GPU the
    # synchronization, but every later random number would differ.
    chosen = torch.rand(labels.shape, dtype=torch.float32, device=labels.device) < probability
    flipped = labels.clone()
    flipped[chosen] = torch.randint_like(labels[chosen], num_classes)
    return flipped


def shift_corners(boxes_cxcywh: Tensor, least: Tensor, scale: float) -> Tensor:
    """Move each corner coordinate by a random share of half the box's size, in a random direction.

    The share is drawn uniformly from (``least`` .. ``least + 1``) * ``scale``.

    Args:
        boxes_cxcywh: [..., 4], fractions of the image.
        least: broadcast to the boxes, in half widths (x) and half heights (y); from 0 it stays
            nearer to its own box than from 1.
        scale: the noise scale lambda; 0 draws nothing.

    Returns:
        Boxes cxcywh [..., 4] inside the image. Width or height is negative if corners crossed.
    """
    if scale <= 0:
        return boxes_cxcywh
    half_size = boxes_cxcywh[..., [2, 3, 2, 3]] / 2
    shape, device, dtype = boxes_cxcywh.shape, boxes_cxcywh.device, boxes_cxcywh.dtype
    sign = torch.randint(0, 2, shape, device=device).to(dtype) * 2 - 1
    distance = torch.rand(shape, device=device, dtype=dtype) + least
    corners = box_cxcywh_to_xyxy(boxes_cxcywh) + sign * distance * half_size * scale
    return box_xyxy_to_cxcywh(corners.clamp(0.0, 1.0))


def shift_and_scale(boxes_cxcywh: Tensor, scale: float) -> Tensor:
    """Apply DN-DETR's uniform box noise.

    The center shifts by up to ``scale`` half sizes, and each side is stretched or shrunk by up to
    ``scale`` of its length.

    Args:
        boxes_cxcywh: [..., 4], fractions of the image.
        scale: lambda of the paper, 0..1; below 1 the center stays inside the box; 0 draws nothing.

    Returns:
        Boxes cxcywh [..., 4], every number clamped to 0..1.
    """
    if scale <= 0:
        return boxes_cxcywh
    reach = boxes_cxcywh[..., [2, 3, 2, 3]] * boxes_cxcywh.new_tensor([0.5, 0.5, 1.0, 1.0])
    shape, device = boxes_cxcywh.shape, boxes_cxcywh.device
    noise = torch.rand(shape, device=device, dtype=boxes_cxcywh.dtype) * 2 - 1
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
    """Make DN-DETR's denoising queries: each group holds every box once, independently noised.

    Args:
        targets: per image ``labels`` [n] and ``boxes`` [n, 4].
        label_embedding: at least one row per class.
        num_classes: V; flipped labels are drawn from these.
        denoising_groups: G; 0 turns denoising off.
        label_noise_prob: probability that a label is drawn anew, 0..1.
        box_noise_scale: see :func:`shift_and_scale`.
        with_indicator: append a channel of ones, which tells denoising queries from matching ones.

    Returns:
        The queries, or None when denoising is off or no image of the batch has a box.
    """
    truth = _ground_truth(targets)
    if denoising_groups <= 0 or truth.most == 0:
        return None
    copies = (denoising_groups, len(truth.labels_T))
    labels_GT = flip_labels(truth.labels_T.expand(copies), label_noise_prob, num_classes)
    noised_GT4 = shift_and_scale(truth.boxes_T4.expand(*copies, 4), box_noise_scale)
    content_GTC = pad(label_embedding(labels_GT), (0, int(with_indicator)), value=1.0)
    return DenoisingQueries(
        content_BDC=truth.scattered(content_GTC, 0.0),
        reference_BD4=truth.scattered(inverse_sigmoid(noised_GT4).sigmoid(), 0.5),
        num_groups=denoising_groups,
        group_size=truth.most,
    )


def contrastive_queries(
    targets: list[Target],
    label_embedding: nn.Embedding,
    *,
    dn_number: int,
    label_noise_ratio: float,
    box_noise_scale: float,
) -> DenoisingQueries | None:
    """Make DINO's contrastive denoising queries: a slightly and a strongly noised box per group.

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
    truth = _ground_truth(targets)
    if dn_number <= 0 or truth.most == 0:
        return None
    num_groups = max(1, dn_number // truth.most)
    copies = (num_groups, 2, len(truth.labels_T))
    labels_GPT = flip_labels(
        truth.labels_T.expand(copies), label_noise_ratio / 2, label_embedding.num_embeddings
    )
    least_P11 = truth.boxes_T4.new_tensor([0.0, 1.0])[:, None, None]
    noised_GPT4 = shift_corners(truth.boxes_T4.expand(*copies, 4), least_P11, box_noise_scale)
    return DenoisingQueries(
        content_BDC=truth.scattered(label_embedding(labels_GPT), 0.0),
        reference_BD4=truth.scattered(inverse_sigmoid(noised_GPT4).sigmoid(), 0.5),
        num_groups=num_groups,
        group_size=2 * truth.most,
    )


def split_denoising(
    predictions: Predictions, denoising: DenoisingQueries | None, *, aux: bool
) -> tuple[Predictions, dict[str, Any] | None]:
    """Split off the predictions of the denoising queries, which precede the matching ones.

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
        "output_known_lbs_bboxes": Predictions(known.logits_SBQV, known.boxes_SBQ4).as_outputs(
            aux=aux
        ),
    }
    return predictions[denoising.num_queries :], dn_metas


def keep_in_graph(predictions: Predictions, embedding: nn.Embedding) -> Predictions:
    """Keep a label embedding in the autograd graph of a batch without denoising queries.

    ``DistributedDataParallel`` waits for a gradient of every parameter in every process, including
    a process whose images have no box in this iteration. The gradient is zero.
    """
    zero = 0.0 * embedding.weight[0, 0]
    return Predictions(predictions.logits_SBQV + zero, predictions.boxes_SBQ4, predictions.valid_BQ)
