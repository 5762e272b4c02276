"""Deformable DETR: plain, with iterative box refinement, or with two stages.

Source: arXiv 2010.04159; names, arguments and state-dict keys of detrex
    ``projects/deformable_detr``.
Differs: see :mod:`tokendetr.detector`: any device, exact padding at evaluation, images of any size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from projects.deformable_detr.modeling.deformable_transformer import DeformableDetrTransformer
from tokendetr.detector import detector as base
from tokendetr.detector.heads import predict
from tokendetr.detector.pyramid import Pyramid
from tokendetr.detector.targets import Target


class DeformableDETR(base.DeformableDetector):
    """The detector.

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
        pixel_std: channel deviations.
        aux_loss: train every decoder layer.
        with_box_refine: each layer refines the boxes of the one before, with heads of its own.
        as_two_stage: queries come from the encoder's proposals.
        select_box_nums_for_evaluation: detections per image.
        device: accepted for upstream's configs; the model works where its parameters are.

    Raises:
        ValueError: ``as_two_stage`` differs from the transformer's, or comes without
            ``with_box_refine``.
    """

    query_embedding: nn.Embedding  # without two stages

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
        if as_two_stage != transformer.as_two_stage:
            raise ValueError(
                f"model.as_two_stage is {as_two_stage}, model.transformer.as_two_stage is "
                f"{transformer.as_two_stage}: set both alike"
            )
        if as_two_stage and not with_box_refine:
            raise ValueError("model.as_two_stage needs model.with_box_refine=True")
        learned: dict[str, nn.Module] = (
            {} if as_two_stage else {"query_embedding": nn.Embedding(num_queries, 2 * embed_dim)}
        )
        super().__init__(
            base.DetectorParts(backbone, position_embedding, neck, transformer, criterion),
            base.DetectorSizes(embed_dim, num_classes, num_queries, select_box_nums_for_evaluation),
            base.PixelScale(pixel_mean, pixel_std),
            query_embeddings=learned,
            aux_loss=aux_loss,
        )
        self.with_box_refine = with_box_refine
        self.as_two_stage = as_two_stage
        self.add_heads(two_stage=as_two_stage, shared=not with_box_refine)
        if with_box_refine:
            self.transformer.decoder.bbox_embed = self.bbox_embed
        if as_two_stage:
            self.transformer.decoder.class_embed = self.class_embed

    def detect(self, pyramid: Pyramid, targets: list[Target] | None) -> base.Detections:
        """Predictions of every decoder layer and, with two stages, of every encoder token."""
        learned_QD = None if self.as_two_stage else self.query_embedding.weight
        output = self.transformer(pyramid, learned_QD)
        layers = predict(
            output.decoded, self.class_embed, self.bbox_embed, self.transformer.decoder.num_layers
        )
        encoder = None if output.proposals is None else output.proposals.dense_outputs()
        return base.Detections(layers, encoder)
