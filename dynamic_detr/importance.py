"""Importance of the levels in each stage of a dense encoder, from the attention they receive.

Shapes: B image, N all tokens, Q query, M head, L level, P point.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokendetr.errors import check_choice
from tokendetr.layers.deformable_attention import MultiScaleDeformableAttention
from tokendetr.tokens import smallest_covering_set, splat_attention

__all__ = ["STATISTICS", "LevelImportance", "Statistic", "record_level_importance"]

Statistic = Literal["set_share", "mass", "own_share"]
STATISTICS = ("set_share", "mass", "own_share")


class LevelImportance:
    """Scores of levels per encoder layer, averaged over images.

    Two of the statistics use the smallest set of tokens, over all levels, that receives ``mass`` of
    a layer's attention.

    Args:
        num_layers: encoder layers.
        mass: share of the attention, in (0, 1].
        statistic: a level's score. "set_share": the share of that set that lies in the level;
            "mass": the share of all attention that the level receives; "own_share": the share of
            the level's tokens that are in the set, which ranks levels with few tokens first.

    Raises:
        ValueError: a value is out of range.

    Source: Dynamic DETR (ICML 2025), figure 2 (75 %) and figure 4, whose statistic is not defined.
    Of the three, only the first two give the printed order of the first stage.
    """

    def __init__(
        self, num_layers: int, *, mass: float = 0.75, statistic: Statistic = "set_share"
    ) -> None:
        check_choice("statistic", statistic, STATISTICS)
        self.statistic = statistic
        if not 0 < mass <= 1:
            raise ValueError(f"mass must lie in (0, 1], got {mass}")
        self.mass = mass
        self._sums: list[Tensor | None] = [None] * num_layers
        self._images = [0] * num_layers

    @property
    def num_images(self) -> int:
        """Number of images counted in every layer."""
        return min(self._images)

    def add(
        self,
        layer: int,
        mass_BN: Tensor,
        level_shapes: Sequence[Sequence[int]],
        valid_BN: Tensor | None = None,
    ) -> None:
        """Add a layer's attention of one batch.

        Args:
            layer: from 0.
            mass_BN: attention paid to each token.
            level_shapes: (height, width) of each level, finest first.
            valid_BN: bool, True for real tokens; None if all are.
        """
        if valid_BN is None:
            valid_BN = torch.ones_like(mass_BN, dtype=torch.bool)
        chosen_BN = smallest_covering_set(mass_BN, self.mass, valid_BN=valid_BN)
        sizes = [height * width for height, width in level_shapes]
        part_BN = mass_BN * valid_BN if self.statistic == "mass" else chosen_BN
        part_BL, real_BL = (
            torch.stack(
                [level.sum(dim=1, dtype=torch.float64) for level in each_BN.split(sizes, dim=1)],
                dim=1,
            )
            for each_BN in (part_BN, valid_BN)
        )
        of_BL = real_BL if self.statistic == "own_share" else part_BL.sum(dim=1, keepdim=True)
        # An image without attention gets 0 / tiny = 0 instead of NaN.
        share_L = (part_BL / of_BL.clamp(min=torch.finfo(torch.float64).tiny)).sum(dim=0).cpu()
        known = self._sums[layer]
        self._sums[layer] = share_L if known is None else known + share_L
        self._images[layer] += len(mass_BN)

    def layer_scores(self) -> list[list[float]]:
        """Return each layer's score of each level, in [0, 1].

        Raises:
            ValueError: a layer has counted no image.
        """
        scores = []
        for layer, (total, images) in enumerate(zip(self._sums, self._images, strict=True)):
            if total is None:
                raise ValueError(f"no image went through encoder layer {layer + 1}")
            scores.append((total / images).tolist())
        return scores

    def stage_scores(self, stage_lengths: Sequence[int]) -> list[list[float]]:
        """Return each stage's score of each level: the mean of its layers'.

        Args:
            stage_lengths: encoder layers of each stage.

        Raises:
            ValueError: they do not add up to the encoder's layers.
        """
        scores = self.layer_scores()
        if sum(stage_lengths) != len(scores) or min(stage_lengths) < 1:
            raise ValueError(
                f"stages of {' + '.join(map(str, stage_lengths))} layers do not make up the "
                f"encoder's {len(scores)} layers"
            )
        stages = []
        for length in stage_lengths:
            layers, scores = scores[:length], scores[length:]
            stages.append([sum(column) / length for column in zip(*layers, strict=True)])
        return stages

    def level_orders(self, stage_lengths: Sequence[int]) -> list[list[int]]:
        """Return each stage's levels, from 1, most important first; the finer one on a tie."""
        return [
            sorted(range(1, len(scores) + 1), key=lambda level: -scores[level - 1])
            for scores in self.stage_scores(stage_lengths)
        ]


@contextmanager
def record_level_importance(
    encoder: nn.Module, *, mass: float = 0.75, statistic: Statistic = "set_share"
) -> Iterator[LevelImportance]:
    """Measure level importance from every forward pass of a dense encoder in the ``with`` block.

    Args:
        encoder: of a tokendetr detector, without a sparsifier.
        mass: see :class:`LevelImportance`.
        statistic: see :class:`LevelImportance`.

    Yields:
        The importance, updated by every pass.

    Raises:
        ValueError: the encoder is not tokendetr's, or has a sparsifier.
    """
    layers = getattr(encoder, "layers", ())
    attentions = [attention for layer in layers for attention in getattr(layer, "attentions", ())]
    if not attentions or len(attentions) != len(layers):
        raise ValueError(f"{type(encoder).__name__} has no layers with one attention each")
    for attention in attentions:
        if not isinstance(attention, MultiScaleDeformableAttention):
            raise ValueError(
                f"the attention of {type(encoder).__name__} is a {type(attention).__name__}, not "
                "tokendetr's: its weights cannot be read"
            )
    if getattr(encoder, "sparsifier", None) is not None:
        raise ValueError(
            f"the encoder works on fewer tokens ({type(encoder.sparsifier).__name__}): levels are "
            "ranked on the dense detector"
        )
    importance = LevelImportance(len(attentions), mass=mass, statistic=statistic)
    hooks = [
        attention.register_forward_pre_hook(_recorder(importance, index), with_kwargs=True)
        for index, attention in enumerate(attentions)
    ]
    try:
        yield importance
    finally:
        for hook in hooks:
            hook.remove()


def _recorder(importance: LevelImportance, layer: int) -> Any:
    @torch.no_grad()
    def record(attention: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        query_BQC, shapes = args[0], kwargs["level_shapes"]
        if kwargs.get("query_pos") is not None:
            query_BQC = query_BQC + kwargs["query_pos"]
        locations, weights = attention.locations_and_weights(
            query_BQC, kwargs["reference_points"], shapes
        )
        valid_BN = None
        if kwargs.get("key_padding_mask") is not None:
            valid_BN = ~kwargs["key_padding_mask"]
            weights = weights * valid_BN[:, :, None, None, None]
        importance.add(layer, splat_attention(locations, weights, shapes), shapes, valid_BN)

    return record
