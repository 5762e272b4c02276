"""Deformable DETR: plain, with iterative box refinement, or with two stages.

Source: arXiv 2010.04159; names, arguments and state-dict keys are detrex's.
Differs: see :mod:`tokendetr.detector`: any device, exact padding at evaluation, images of any size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tokendetr.detector import detector as base
from tokendetr.detector.heads import predict
from tokendetr.detector.pyramid import Pyramid
from tokendetr.detector.reference_points import ReferencePointDetector
from tokendetr.detector.targets import Target
from tokendetr.models.deformable_detr.deformable_transformer import DeformableDetrTransformer


class DeformableDETR(ReferencePointDetector):
    """Deformable DETR.

    Args:
        backbone: backbone module.
        position_embedding: position embedding of feature maps.
        neck: projects backbone features to the transformer's levels.
        transformer: a :class:`DeformableDetrTransformer`.
        embed_dim: width of the transformer.
        num_classes: number of classes.
        num_queries: number of learned queries (with two stages the transformer has its own number).
        criterion: a ``DeformableCriterion``.
        pixel_mean: channel means, 0..255.
        pixel_std: channel standard deviations.
        aux_loss: train every decoder layer.
        with_box_refine: each layer refines the boxes of the one before, with heads of its own.
        as_two_stage: queries come from the encoder's proposals.
        select_box_nums_for_evaluation: detections per image.
        device: ignored; accepted for upstream's configs. Move the model with ``.to(device)``.

    Raises:
        ValueError: ``as_two_stage`` differs from the transformer's, or comes without
            ``with_box_refine``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        position_embedding: nn.Module,
        neck: nn.Module,
        transformer: DeformableDetrTransformer,
        embed_dim: int,
        num_classes: int,
        num_queries: int,
        criterion: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        aux_loss: bool = True,
        with_box_refine: bool = False,
        as_two_stage: bool = False,
        select_box_nums_for_evaluation: int = 100,
        device: str = "cuda",
    ) -> None:
        query_channels = 0 if as_two_stage else 2 * embed_dim
        super().__init__(
            base.DetectorParts(backbone, position_embedding, neck, transformer, criterion),
            base.DetectorSizes(embed_dim, num_classes, num_queries, select_box_nums_for_evaluation),
            base.PixelScale(pixel_mean, pixel_std),
            aux_loss=aux_loss,
            with_box_refine=with_box_refine,
            as_two_stage=as_two_stage,
            query_channels=query_channels,
        )

    def detect(self, pyramid: Pyramid, targets: list[Target] | None) -> base.DetectorOutput:
        """Return predictions of every decoder layer and, with two stages, every encoder token."""
        output = self.transformer(pyramid, self.learned_table())
        layers = predict(
            output.decoded, self.class_embed, self.bbox_embed, self.transformer.decoder.num_layers
        )
        encoder = None if output.proposals is None else output.proposals.dense_outputs()
        return base.DetectorOutput(layers, encoder)
