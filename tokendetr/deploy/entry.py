"""Detector as a function of tensors with fixed shapes, for export.

Shapes: B image, H and W height and width of the canvas, T detections per image, Q query, V class.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from detrex.layers import box_cxcywh_to_xyxy
from torch import Tensor, nn

from tokendetr.deploy.padding import IgnorePadding
from tokendetr.detector.detector import DeformableDetector
from tokendetr.detector.images import normalize
from tokendetr.detector.padding import PaddingRule
from tokendetr.detector.postprocess import best_detections
from tokendetr.detector.pyramid import Pyramid, level_positions
from tokendetr.detector.queries import Predictions
from tokendetr.encoder.forward_context import image_extents, open_pass
from tokendetr.errors import ExportError
from tokendetr.layers.precision import as_converted
from tokendetr.tokens import LevelLayout

Size = tuple[int, int]


class FixedDetections(NamedTuple):
    """Detections of a batch in tensors whose shapes do not depend on the number of detections.

    Attributes:
        boxes_BT4: float, xyxy in pixels of the input, inside the image.
        scores_BT: float in [0, 1], descending; 0 beyond an image's count.
        labels_BT: long, class indices from 0; 0 beyond an image's count.
        counts_B: long, number of an image's T entries that are detections.
    """

    boxes_BT4: Tensor
    scores_BT: Tensor
    labels_BT: Tensor
    counts_B: Tensor


class RawPredictions(NamedTuple):
    """Predictions of the last decoder layer, before post-processing.

    Attributes:
        logits_BQV: float, one logit per class.
        boxes_BQ4: float, cxcywh relative to the image, in [0, 1].
        valid_BQ: bool, False for padding queries (an image may have fewer tokens than queries).
    """

    logits_BQV: Tensor
    boxes_BQ4: Tensor
    valid_BQ: Tensor


class DeployedDetector(nn.Module):
    """A detector as a function of tensors, equal to the detector in evaluation mode.

    Args:
        detector: one of this project's detectors, with any method; it is put into evaluation mode.
        padding: images may be smaller than the canvas, and each is computed as if it were alone.
            False: every image fills the canvas, nothing is masked, and ``sizes`` only scales the
            returned boxes.
        postprocess: return detections; otherwise the last decoder layer's predictions.

    Raises:
        ExportError: the model is of another kind, or its shapes depend on values.
    """

    def __init__(
        self, detector: nn.Module, *, padding: bool = True, postprocess: bool = True
    ) -> None:
        super().__init__()
        detector = checked_detector(detector)
        sparsifier = getattr(detector.transformer.encoder, "sparsifier", None)
        if getattr(sparsifier, "mass_budget", None) is not None:
            raise ExportError(
                "with a mass_budget the number of tokens depends on the image, but an exported "
                "program has fixed shapes: export the model without it (mass_budget=None)"
            )
        self.detector = detector.eval()
        self.padding = padding
        self.postprocess = postprocess

    @property
    def rule(self) -> PaddingRule:
        """Sizes of the canvas that the backbone supports."""
        return PaddingRule.of(self.detector.backbone)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Return the fields of :class:`FixedDetections` or :class:`RawPredictions`, a plain tuple.

        Args:
            images: float [B, 3, H, W], pixel values 0..255 in the channel order that the detector
                was trained with, each image at the upper left; what lies beyond it is not read.
            sizes: long [B, 2], height and width of each image in pixels.
        """
        detector = self.detector
        with as_converted(detector.pixel_mean), open_pass(detector):
            detections = detector.detect(self._pyramid(images, sizes), None)
        predictions = detections.layers
        if self.postprocess:
            limit = detector.select_box_nums_for_evaluation
            return tuple(fixed_detections(predictions, sizes, limit=limit))
        logits_BQV, boxes_BQ4 = predictions.logits_SBQV[-1], predictions.boxes_SBQ4[-1]
        valid_BQ = predictions.valid_BQ
        if valid_BQ is None:
            valid_BQ = torch.ones_like(boxes_BQ4[..., 0], dtype=torch.bool)
        return logits_BQV, boxes_BQ4, valid_BQ

    def _pyramid(self, images_B3HW: Tensor, sizes_B2: Tensor) -> Pyramid:
        detector = self.detector
        canvas = (int(images_B3HW.shape[-2]), int(images_B3HW.shape[-1]))
        if self.rule.canvas([canvas]) != canvas:
            raise ExportError(
                f"the backbone takes no images of {canvas[0]} x {canvas[1]}; the next size that it "
                f"takes is {' x '.join(map(str, self.rule.canvas([canvas])))}"
            )
        normalized_B3HW = normalize(images_B3HW, detector.pixel_mean, detector.pixel_std)
        if self.padding:
            features, layout = self._padded_features(normalized_B3HW, canvas, sizes_B2)
        else:
            features, layout = self._full_features(normalized_B3HW, canvas)
        positions = [
            level_positions(
                detector.position_embedding,
                layout.grid(layout.padding_BN, level),
                same=not self.padding,
            )
            for level in range(layout.num_levels)
        ]
        return Pyramid(features, positions, layout)

    def _padded_features(
        self, images_B3HW: Tensor, canvas: Size, sizes_B2: Tensor
    ) -> tuple[list[Tensor], LevelLayout]:
        if self.rule != PaddingRule():
            raise ExportError(
                f"the backbone pads images by itself ({self.rule}): export the model for images "
                "that fill the canvas (padding=False, --no-padding)"
            )
        with IgnorePadding(canvas, sizes_B2) as parts:
            levels = self.detector.neck(self.detector.backbone(images_B3HW))
        features = [parts.real(level) for level in levels]
        sizes_BL2 = torch.stack([parts.sizes_B2(level) for level in features], dim=1)
        shapes = [(int(level.shape[-2]), int(level.shape[-1])) for level in features]
        return features, LevelLayout.from_traced_sizes(shapes, sizes_BL2)

    def _full_features(self, images_B3HW: Tensor, canvas: Size) -> tuple[list[Tensor], LevelLayout]:
        batch = int(images_B3HW.shape[0])
        with image_extents(range(batch), [canvas] * batch):
            features = list(self.detector.neck(self.detector.backbone(images_B3HW)))
        shapes = [(int(level.shape[-2]), int(level.shape[-1])) for level in features]
        layout = LevelLayout.from_valid_sizes(shapes, [shapes] * batch, device=images_B3HW.device)
        return features, layout


def checked_detector(model: object) -> DeformableDetector:
    """Return a model that can be exported.

    Raises:
        ExportError: the model is of another kind; the message names a detector that it wraps.
    """
    if isinstance(model, DeformableDetector):
        return model
    wrapped = ("model", "module", "_orig_mod")  # load()'s result, DistributedDataParallel, compile
    inside = [n for n in wrapped if isinstance(getattr(model, n, None), DeformableDetector)]
    raise ExportError(
        f"{type(model).__name__} is not one of tokendetr's detectors: only those can be exported"
        + (f", such as the one that it holds as its attribute {inside[0]}" if inside else "")
    )


def fixed_detections(predictions: Predictions, sizes_B2: Tensor, *, limit: int) -> FixedDetections:
    """Return the ``limit`` best detections of each image, without empty boxes.

    Args:
        predictions: predictions of all decoder layers, of which the last one is used.
        sizes_B2: long, (height, width) of each image, in whose pixels boxes are returned.
        limit: maximum number of detections T.
    """
    scores_BT, labels_BT, boxes_BT4 = best_detections(
        predictions.logits_SBQV[-1], predictions.boxes_SBQ4[-1], predictions.valid_BQ, limit
    )
    size_B14 = sizes_B2.flip(-1).repeat(1, 2)[:, None].to(boxes_BT4.dtype)
    boxes_BT4 = (box_cxcywh_to_xyxy(boxes_BT4) * size_B14).clamp_min(0.0).minimum(size_B14)
    found_BT = (boxes_BT4[..., 2] > boxes_BT4[..., 0]) & (boxes_BT4[..., 3] > boxes_BT4[..., 1])
    if predictions.valid_BQ is not None:
        found_BT = found_BT & scores_BT.isfinite()
    # Detections first, in their order. The keys are distinct integers, since runtimes differ in the
    # order of equal values.
    length = int(scores_BT.shape[1])
    place_T = torch.arange(length, dtype=torch.float32, device=scores_BT.device)
    key_BT = place_T + length * (~found_BT).to(torch.float32)
    order_BT = key_BT.topk(length, dim=1, largest=False).indices
    real_BT = found_BT.gather(1, order_BT)
    return FixedDetections(
        boxes_BT4.gather(1, order_BT[..., None].expand(-1, -1, 4)),
        scores_BT.gather(1, order_BT).masked_fill(~real_BT, 0.0),
        labels_BT.gather(1, order_BT).masked_fill(~real_BT, 0),
        found_BT.sum(dim=1),
    )
