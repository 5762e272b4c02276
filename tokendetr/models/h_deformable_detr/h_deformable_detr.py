"""H-Deformable DETR: Deformable DETR with a one-to-many branch in training.

Source: arXiv 2207.13080, section 3.2 (hybrid branch scheme); names, arguments and state-dict keys
    of detrex ``projects/h_deformable_detr``.
Differs: see :mod:`tokendetr.detector`: any device, exact padding at evaluation, images of any size.
    If a tiny image has fewer tokens than queries, the one-to-one branch gets them first.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tokendetr.detector import (
    ChannelValues,
    DetectorOutput,
    DetectorParts,
    DetectorSizes,
    PixelScale,
    Predictions,
    Pyramid,
    ReferencePointDetector,
    Target,
    predict,
)
from tokendetr.models.h_deformable_detr.deformable_criterion import DeformableCriterion
from tokendetr.models.h_deformable_detr.h_deformable_transformer import HDeformableDetrTransformer


@dataclass(frozen=True)
class HybridOutput(DetectorOutput):
    """Raw predictions of both branches; ``one_to_many`` is None in evaluation."""

    one_to_many: Predictions | None = None


class HDeformableDETR(ReferencePointDetector):
    """H-Deformable DETR.

    Args: as upstream; see :class:`tokendetr.models.deformable_detr.DeformableDETR`, and

        num_queries_one2one: queries matched one to one, the only ones in evaluation.
        num_queries_one2many: further queries in training.
        mixed_selection: with two stages, positions from the proposals but learned content.
        k_one2many: queries matched to each box in the one-to-many branch; 0 turns its loss off.
        lambda_one2many: weight of the one-to-many losses.

    Raises:
        ValueError: the transformer disagrees about ``as_two_stage``, ``mixed_selection`` or the
            number of queries, or ``as_two_stage`` comes without ``with_box_refine``.
    """

    transformer: HDeformableDetrTransformer

    def __init__(
        self,
        backbone: nn.Module,
        position_embedding: nn.Module,
        neck: nn.Module,
        transformer: HDeformableDetrTransformer,
        embed_dim: int,
        num_classes: int,
        num_queries_one2one: int,
        num_queries_one2many: int,
        criterion: DeformableCriterion,
        pixel_mean: ChannelValues,
        pixel_std: ChannelValues,
        aux_loss: bool = True,
        with_box_refine: bool = False,
        as_two_stage: bool = False,
        select_box_nums_for_evaluation: int = 100,
        device: str = "cuda",
        mixed_selection: bool = True,
        k_one2many: int = 6,
        lambda_one2many: float = 1.0,
    ) -> None:
        num_queries = num_queries_one2one + num_queries_one2many
        query_channels = 2 * embed_dim
        if as_two_stage:
            check_two_stage(transformer, num_queries, mixed_selection)
            query_channels = embed_dim if mixed_selection else 0
        super().__init__(
            DetectorParts(backbone, position_embedding, neck, transformer, criterion),
            DetectorSizes(embed_dim, num_classes, num_queries, select_box_nums_for_evaluation),
            PixelScale(pixel_mean, pixel_std),
            aux_loss=aux_loss,
            with_box_refine=with_box_refine,
            as_two_stage=as_two_stage,
            query_channels=query_channels,
        )
        self.num_queries_one2one = num_queries_one2one
        self.mixed_selection = mixed_selection
        self.k_one2many = k_one2many
        self.lambda_one2many = lambda_one2many

    def detect(self, pyramid: Pyramid, targets: list[Target] | None) -> HybridOutput:
        """Return predictions of the one-to-one branch and, in training, of the one-to-many one."""
        first = self.num_queries_one2one
        output = self.transformer(
            pyramid,
            self.learned_table(),
            num_queries=first if targets is None else self.num_queries,
            num_first=first,
        )
        layers = predict(
            output.decoded, self.class_embed, self.bbox_embed, self.transformer.decoder.num_layers
        )
        return HybridOutput(
            layers[:first],
            None if output.proposals is None else output.proposals.dense_outputs(),
            one_to_many=None if targets is None else layers[first:],
        )

    def losses(self, output: DetectorOutput, targets: list[Target]) -> dict[str, Tensor]:
        """Return the losses of both branches; the one-to-many branch's end in ``_one2many``."""
        losses = super().losses(output, targets)
        assert isinstance(output, HybridOutput)
        if output.one_to_many is None or self.k_one2many <= 0:
            return losses
        repeated = [
            {
                "labels": target["labels"].repeat(self.k_one2many),
                "boxes": target["boxes"].repeat(self.k_one2many, 1),
            }
            for target in targets
        ]
        more = super().losses(DetectorOutput(output.one_to_many), repeated)
        return losses | {f"{n}_one2many": v * self.lambda_one2many for n, v in more.items()}


def check_two_stage(
    transformer: HDeformableDetrTransformer, num_queries: int, mixed_selection: bool
) -> None:
    """Raise ValueError if the transformer selects other queries than the detector expects."""
    for name, wanted in (
        ("two_stage_num_proposals", num_queries),
        ("mixed_selection", mixed_selection),
    ):
        found = getattr(transformer, name)
        if transformer.as_two_stage and found != wanted:
            raise ValueError(
                f"model.transformer.{name} is {found}, but the model has {wanted} (its queries are "
                "num_queries_one2one + num_queries_one2many): set both to the same value"
            )
