"""DAB-Deformable DETR: learned 4-d anchors (or two stages) that every decoder layer refines.

Source: arXiv 2201.12329; names, arguments and state-dict keys of detrex
    ``projects/dab_deformable_detr``.
Differs: see :mod:`tokendetr.detector`: any device, exact padding at evaluation, images of any size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tokendetr.detector import (
    AnchorDetector,
    DetectorOutput,
    DetectorParts,
    DetectorSizes,
    PixelScale,
    Pyramid,
    Target,
)
from tokendetr.models.dab_deformable_detr.dab_deformable_transformer import (
    DabDeformableDetrTransformer,
)
from tokendetr.models.dab_deformable_detr.two_stage_criterion import TwoStageCriterion


class DabDeformableDETR(AnchorDetector):
    """DAB-Deformable DETR.

    Args:
        backbone: backbone module.
        position_embedding: position embedding of feature maps.
        neck: projects backbone features to the transformer's levels.
        transformer: a :class:`DabDeformableDetrTransformer`.
        num_classes: number of classes.
        num_queries: number of learned anchors (with two stages the transformer has its own number).
        criterion: a ``TwoStageCriterion``.
        pixel_mean: channel means, 0..255.
        pixel_std: channel standard deviations.
        embed_dim: width of the transformer.
        aux_loss: train every decoder layer.
        as_two_stage: anchors and content come from the encoder's proposals.
        select_box_nums_for_evaluation: detections per image.
        device: ignored; accepted for upstream's configs. Move the model with ``.to(device)``.

    Raises:
        ValueError: ``as_two_stage`` differs from the transformer's.
    """

    transformer: DabDeformableDetrTransformer

    def __init__(
        self,
        backbone: nn.Module,
        position_embedding: nn.Module,
        neck: nn.Module,
        transformer: DabDeformableDetrTransformer,
        num_classes: int,
        num_queries: int,
        criterion: TwoStageCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        embed_dim: int = 256,
        aux_loss: bool = True,
        as_two_stage: bool = False,
        select_box_nums_for_evaluation: int = 300,
        device: str = "cuda",
    ) -> None:
        super().__init__(
            DetectorParts(backbone, position_embedding, neck, transformer, criterion),
            DetectorSizes(embed_dim, num_classes, num_queries, select_box_nums_for_evaluation),
            PixelScale(pixel_mean, pixel_std),
            aux_loss=aux_loss,
            as_two_stage=as_two_stage,
        )

    def detect(self, pyramid: Pyramid, targets: list[Target] | None) -> DetectorOutput:
        """Return predictions of every decoder layer and, with two stages, of selected proposals."""
        return self.decode(pyramid, denoising=None)
