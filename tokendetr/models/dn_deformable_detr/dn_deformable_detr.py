"""DN-Deformable DETR: DAB-Deformable DETR that also learns to restore noised ground truth.

Source: arXiv 2203.01305, section 3; names, arguments and state-dict keys of detrex
    ``projects/dn_deformable_detr``.
Differs: see :mod:`tokendetr.detector`: any device, exact padding at evaluation, images of any size,
    with or without boxes. Noised labels are real classes, never the spare row of the label table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.nn import Embedding, Module, ModuleDict

from tokendetr.detector import anchored as base
from tokendetr.detector.denoising import (
    DenoisingQueries,
    keep_in_graph,
    noised_queries,
    split_denoising,
)
from tokendetr.detector.pyramid import Pyramid
from tokendetr.detector.targets import Target
from tokendetr.models.dn_deformable_detr.dn_criterion import DNCriterion
from tokendetr.models.dn_deformable_detr.dn_deformable_transformer import (
    DNDeformableDetrTransformer,
)


class DNDeformableDETR(base.AnchorDetector):
    """DN-Deformable DETR.

    Args: as upstream; see :class:`tokendetr.models.dab_deformable_detr.DabDeformableDETR`, and

        criterion: a ``DNCriterion``.
        denoising_groups: noised copies of the ground truth; 0 turns denoising off.
        label_noise_prob: probability that a copy's label is drawn anew, 0..1.
        box_noise_scale: noise of a copy's box as a fraction of its size, 0..1.
        with_indicator: the last content channel is 1 for denoising and 0 for matching queries.

    Raises:
        ValueError: ``as_two_stage`` differs from the transformer's.
    """

    denoising_generator: ModuleDict

    def __init__(
        self,
        backbone: Module,
        position_embedding: Module,
        neck: Module,
        transformer: DNDeformableDetrTransformer,
        num_classes: int,
        num_queries: int,
        criterion: DNCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        embed_dim: int = 256,
        aux_loss: bool = True,
        as_two_stage: bool = False,
        denoising_groups: int = 5,
        label_noise_prob: float = 0.2,
        box_noise_scale: float = 0.4,
        with_indicator: bool = True,
        select_box_nums_for_evaluation: int = 300,
        device: str = "cuda",
    ) -> None:
        super().__init__(
            base.DetectorParts(backbone, position_embedding, neck, transformer, criterion),
            base.DetectorSizes(embed_dim, num_classes, num_queries, select_box_nums_for_evaluation),
            base.PixelScale(pixel_mean, pixel_std),
            with_indicator=with_indicator,
            aux_loss=aux_loss,
            as_two_stage=as_two_stage,
        )
        self.denoising_groups = denoising_groups
        self.label_noise_prob = label_noise_prob
        self.box_noise_scale = box_noise_scale
        # Upstream's table has an unused row for "no object": published keys must fit.
        labels = Embedding(num_classes + 1, embed_dim - int(with_indicator))
        self.denoising_generator = ModuleDict({"label_encoder": labels})

    @property
    def label_encoder(self) -> Embedding:
        """The content of a denoising query, by class."""
        table = self.denoising_generator["label_encoder"]
        assert isinstance(table, Embedding)
        return table

    def noise(self, targets: list[Target]) -> DenoisingQueries | None:
        """Return the denoising queries of a training batch; None without any box."""
        return noised_queries(
            targets,
            self.label_encoder,
            num_classes=self.num_classes,
            denoising_groups=self.denoising_groups,
            label_noise_prob=self.label_noise_prob,
            box_noise_scale=self.box_noise_scale,
            with_indicator=self.with_indicator,
        )

    def detect(self, pyramid: Pyramid, targets: list[Target] | None) -> base.DetectorOutput:
        """Return predictions of the matching queries and, in training, of the denoising ones."""
        denoising = None if targets is None else self.noise(targets)
        output = self.decode(pyramid, denoising)
        layers, dn_metas = split_denoising(output.layers, denoising, aux=self.aux_loss)
        if targets is not None and denoising is None:
            layers = keep_in_graph(layers, self.label_encoder)
        return replace(output, layers=layers, criterion_extras=(dn_metas,))
