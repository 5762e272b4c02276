"""Denoising queries: noised ground truth that the decoder learns to restore.

Source: Li et al., 2022, "DN-DETR: Accelerate DETR Training by Introducing Query DeNoising".
"""

from collections.abc import Sequence

import torch
from detrex.utils import inverse_sigmoid
from torch import nn


def apply_label_noise(
    labels: torch.Tensor, label_noise_prob: float = 0.2, num_classes: int = 80
) -> torch.Tensor:
    """Replace labels by random ones.

    Args:
        labels: integers [N]; not changed in place.
        label_noise_prob: probability that a label is redrawn, uniformly from all classes.
        num_classes: number of classes.

    Returns:
        Integers [N].
    """
    if label_noise_prob <= 0:
        return labels
    redrawn = torch.rand(labels.shape, device=labels.device) < label_noise_prob
    return torch.where(redrawn, torch.randint_like(labels, 0, num_classes), labels)


def apply_box_noise(boxes: torch.Tensor, box_noise_scale: float = 0.4) -> torch.Tensor:
    """Jitter boxes: centers by up to half a box, sides by up to a box, times the noise scale.

    Args:
        boxes: normalized cxcywh boxes [N, 4]; left unchanged.
        box_noise_scale: scale of the noise.

    Returns:
        [N, 4], clamped to [0, 1].
    """
    if box_noise_scale <= 0:
        return boxes
    size = boxes[:, 2:]
    reach = torch.cat([size / 2, size], dim=1)
    noise = (torch.rand_like(boxes) * 2 - 1.0) * reach * box_noise_scale
    return (boxes + noise).clamp(min=0.0, max=1.0)


class GenerateDNQueries(nn.Module):
    """Build the denoising queries of a batch and the mask that separates their groups.

    Args:
        num_queries: ordinary queries of the detector, placed after the denoising ones.
        num_classes: number of classes.
        label_embed_dim: channels of a query.
        denoising_groups: independently noised copies of the ground truth.
        label_noise_prob: see :func:`apply_label_noise`.
        box_noise_scale: see :func:`apply_box_noise`.
        with_indicator: use the last channel as an indicator, 1 for denoising queries.
    """

    def __init__(
        self,
        num_queries: int = 300,
        num_classes: int = 80,
        label_embed_dim: int = 256,
        denoising_groups: int = 5,
        label_noise_prob: float = 0.2,
        box_noise_scale: float = 0.4,
        with_indicator: bool = False,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.num_classes = num_classes
        self.label_embed_dim = label_embed_dim
        self.denoising_groups = denoising_groups
        self.label_noise_prob = label_noise_prob
        self.box_noise_scale = box_noise_scale
        self.with_indicator = with_indicator
        self.label_encoder = nn.Embedding(num_classes, label_embed_dim - int(with_indicator))

    def generate_query_masks(
        self, max_gt_num_per_image: int, device: torch.device | str
    ) -> torch.Tensor:
        """Build the self-attention mask of denoising and ordinary queries.

        Denoising queries attend to their own group and to the ordinary queries; ordinary queries
        attend to no denoising ones.

        Args:
            max_gt_num_per_image: size G of a denoising group.
            device: device of the mask.

        Returns:
            bool [T, T] with T = groups * G + num_queries, True where row may not attend to column.
        """
        num_noised = max_gt_num_per_image * self.denoising_groups
        position = torch.arange(num_noised + self.num_queries, device=device)
        group = position // max(max_gt_num_per_image, 1)
        is_noised = position < num_noised
        return is_noised[None] & (~is_noised[:, None] | (group[:, None] != group[None]))

    def _embed_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Return noised and embedded labels [N, label_embed_dim]."""
        noised = apply_label_noise(labels, self.label_noise_prob, self.num_classes)
        embedded = self.label_encoder(noised)
        if self.with_indicator:
            embedded = torch.cat([embedded, torch.ones_like(embedded[:, :1])], dim=1)
        return embedded

    def forward(
        self, gt_labels_list: Sequence[torch.Tensor], gt_boxes_list: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int]:
        """Noise and embed the ground truth of a batch.

        Args:
            gt_labels_list: integers [n] per image.
            gt_boxes_list: normalized cxcywh boxes [n, 4] per image.

        Returns:
            Queries [B, groups * G, label_embed_dim], their box logits [B, groups * G, 4], the mask
            of :meth:`generate_query_masks`, the number of groups, and G, the largest n of the
            batch. Images with fewer boxes have zeros in both.

        Raises:
            ValueError: labels and boxes are not of the same images.
        """
        counts = [len(labels) for labels in gt_labels_list]
        if counts != [len(boxes) for boxes in gt_boxes_list]:
            raise ValueError(
                f"labels per image {counts} and boxes per image"
                f" {[len(boxes) for boxes in gt_boxes_list]} differ"
            )
        groups, largest = self.denoising_groups, max(counts, default=0)
        labels = torch.cat(list(gt_labels_list)).repeat(groups)
        boxes = torch.cat(list(gt_boxes_list)).repeat(groups, 1)
        label_embed = self._embed_labels(labels)
        box_logits = inverse_sigmoid(apply_box_noise(boxes, self.box_noise_scale))

        shape = (len(counts), groups * largest)
        label_queries = label_embed.new_zeros(*shape, self.label_embed_dim)
        box_queries = box_logits.new_zeros(*shape, 4)
        image = torch.tensor([i for i, n in enumerate(counts) for _ in range(n)] * groups)
        slot = torch.tensor(
            [g * largest + i for g in range(groups) for n in counts for i in range(n)]
        )
        index = (image.long().to(labels.device), slot.long().to(labels.device))
        label_queries = label_queries.index_put(index, label_embed)
        box_queries = box_queries.index_put(index, box_logits)
        mask = self.generate_query_masks(largest, labels.device)
        return label_queries, box_queries, mask, groups, largest
