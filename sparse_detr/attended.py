"""Tokens chosen by the decoder of a trained detector: Sparse DETR's preliminary experiment.

Shapes: B image, N all tokens, K kept tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_detr.keep_ratio import RatioSparsifier
from sparse_detr.plan import kept_tokens
from tokendetr.detector import DeformableDetector
from tokendetr.detector.images import read_images
from tokendetr.detector.padding import PaddingRule
from tokendetr.detector.pyramid import build_pyramid
from tokendetr.encoder import EncoderContext, TokenPlan, ValuePolicy
from tokendetr.encoder.bypass import AffineBypass
from tokendetr.encoder.decoder_attention import DecoderAttention
from tokendetr.encoder.detector_view import DetectorView
from tokendetr.encoder.forward_context import open_pass
from tokendetr.encoder.trace import Recorder
from tokendetr.errors import UnsupportedDetectorError
from tokendetr.tokens import Keep, LevelLayout, TokenMap, map_counts, select_tokens

__all__ = ["AttendedTokens"]

_TEACHER = "transformer.encoder.sparsifier.teacher."
_LAYERS = "transformer.encoder.layers."


class AttendedTokens(RatioSparsifier):
    """Updates the tokens that the decoder of a trained detector attends to most.

    The trained detector runs on the same images, in training and evaluation, so this saves nothing:
    it shows how good a choice of tokens could be.

    Args:
        teacher: a dense detector with the same levels, never trained. It gets the weights of a
            checkpoint of a dense detector when one is loaded.
        keep_ratio: share of an image's real tokens that is updated, in [0, 1]. 1 is the dense
            encoder, and the teacher does not run.
        half_cell: see :func:`tokendetr.tokens.splat_attention`.
        value_policy: see :class:`tokendetr.encoder.TokenSparsifier`.
        bypass: maps skipped tokens (:mod:`tokendetr.encoder.bypass`); None: they stay unchanged.

    Raises:
        ValueError: the ratio is out of range, or the teacher has a sparsifier or is not one of
            this project's detectors.

    Source: Sparse DETR, arXiv 2111.14330, appendix A.9 and Table 7. Differs: the map is computed
    for the image as augmented, instead of once per image.
    """

    is_ready: Tensor

    def __init__(
        self,
        *,
        teacher: nn.Module,
        keep_ratio: float = 0.3,
        half_cell: bool = True,
        value_policy: ValuePolicy = "updated",
        bypass: AffineBypass | None = None,
    ) -> None:
        super().__init__(value_policy=value_policy, bypass=bypass)
        self.set_keep_ratio(keep_ratio)
        if not isinstance(teacher, DeformableDetector):
            raise ValueError(
                f"teacher must be one of tokendetr's detectors, got {type(teacher).__name__}"
            )
        if getattr(teacher.transformer.encoder, "sparsifier", None) is not None:
            raise ValueError("teacher must be dense, without a sparsifier in its encoder")
        self.half_cell = half_cell
        self.teacher = teacher.requires_grad_(False).eval()
        self.register_buffer("is_ready", torch.tensor(False))

    def train(self, mode: bool = True) -> "AttendedTokens":
        """Set the mode, of everything but the teacher."""
        super().train(mode)
        self.teacher.eval()
        return self

    def convert_weights(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Give the teacher a checkpoint's weights if the checkpoint is a dense detector's."""
        found = dict(weights)
        if any(_TEACHER in key for key in found):
            return found
        owner = next((key.partition(_LAYERS)[0] for key in found if _LAYERS in key), None)
        if owner is None:
            return found
        for key, value in weights.items():
            found[f"{owner}{_TEACHER}{key.removeprefix(owner)}"] = value
        found[f"{owner}{_TEACHER.removesuffix('teacher.')}is_ready"] = torch.tensor(True)
        return found

    @torch.no_grad()
    def attention(self, batched_inputs: Sequence[Mapping[str, Any]]) -> tuple[Tensor, LevelLayout]:
        """Return the teacher's decoder attention to each token [B, N], and the tokens' layout.

        Args:
            batched_inputs: the detector's input.

        Raises:
            RuntimeError: the teacher was given no weights.
        """
        if not self.is_ready:
            raise RuntimeError(
                "the teacher of AttendedTokens has no weights: train.init_checkpoint must name a "
                "trained dense detector"
            )
        teacher = self.teacher
        batch = read_images(
            batched_inputs,
            pixel_mean_C11=teacher.pixel_mean,
            pixel_std_C11=teacher.pixel_std,
            padding=PaddingRule.of(teacher.backbone),
        )
        with open_pass(teacher, batched_inputs, recorder=Recorder()):
            pyramid = build_pyramid(
                teacher.backbone,
                teacher.neck,
                teacher.position_embedding,
                batch,
                share_canvas=self.training,  # as the detector around it
            )
            view = DetectorView(teacher)
            with DecoderAttention(view, pyramid.layout, half_cell=self.half_cell) as watch:
                teacher.detect(pyramid, None)
        return watch.mass_BN, pyramid.layout

    def plan(self, context: EncoderContext) -> "AttendedPlan":
        """Return the plan of one forward pass.

        Raises:
            UnsupportedDetectorError: the encoder runs without its detector's images, or the
                teacher has other levels.
            RuntimeError: the teacher was given no weights.
        """
        return AttendedPlan(context, self)


class AttendedPlan(TokenPlan):
    """One forward pass: one map for all layers.

    Args:
        context: the forward pass.
        sparsifier: the options and the teacher.
    """

    def __init__(self, context: EncoderContext, sparsifier: AttendedTokens) -> None:
        super().__init__(context)
        self._map: TokenMap = self._identity
        ratio = sparsifier.keep_ratio
        if ratio == 1:
            return
        layout, inputs = context.layout, context.batched_inputs
        if not isinstance(inputs, Sequence) or len(inputs) != layout.batch_size:
            raise UnsupportedDetectorError(
                "AttendedTokens needs the images of the pass: call the whole detector with "
                "detectron2's list of dicts"
            )
        mass_BN, its_layout = sparsifier.attention(inputs)
        if list(its_layout.level_shapes) != list(layout.level_shapes):
            raise UnsupportedDetectorError(
                f"the teacher has levels of {list(its_layout.level_shapes)}, the encoder of "
                f"{list(layout.level_shapes)}: give it a detector with the same strides and padding"
            )
        context.recorder.record_score("attention", mass_BN)
        counts = map_counts(layout.token_counts, lambda count: kept_tokens(ratio, count))
        index_BK, valid_BK = select_tokens(mass_BN, counts, layout)
        self._map = Keep(index_BK=index_BK, valid_BK=valid_BK)

    def token_map(self, layer: int, memory_BNC: Tensor) -> TokenMap:
        """Return the one map of all layers."""
        return self._map
