"""Base class shared by all detectors.

Shapes: B image, Q query, V class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from tokendetr.detector.consistency import check_channels, check_parts
from tokendetr.detector.criterion import check_losses
from tokendetr.detector.heads import build_heads
from tokendetr.detector.images import read_images
from tokendetr.detector.padding import PaddingRule
from tokendetr.detector.postprocess import to_instances, to_original_size
from tokendetr.detector.pyramid import Pyramid, build_pyramid
from tokendetr.detector.queries import Outputs, Predictions
from tokendetr.detector.targets import Target, prepare_targets
from tokendetr.detector.transformer import DeformableTransformer
from tokendetr.detector.visualization import store_first_image
from tokendetr.encoder.forward_context import run_pass
from tokendetr.layers.precision import as_converted, geometry_dtype


@dataclass(frozen=True)
class DetectorOutput:
    """Raw predictions for a batch, before post-processing.

    Attributes:
        layers: predictions of the matching queries, one entry per decoder layer.
        encoder: upstream's ``enc_outputs`` if the detector has two stages, else None.
        criterion_extras: further arguments of the criterion, such as denoising predictions.
    """

    layers: Predictions
    encoder: dict[str, Tensor] | None = None
    criterion_extras: tuple[Any, ...] = field(default=())


class DetectorParts(NamedTuple):
    """The modules of a detector.

    Attributes:
        backbone: images [B, 3, H, W] -> dict of features.
        position_embedding: padding mask -> position embedding of one level.
        neck: dict of features -> levels, finest first.
        transformer: the detector's transformer, with ``decoder.num_layers``.
        criterion: ``criterion(outputs, targets, *extras) -> dict of losses``, with ``weight_dict``.
    """

    backbone: nn.Module
    position_embedding: nn.Module
    neck: nn.Module
    transformer: DeformableTransformer
    criterion: nn.Module


class DetectorSizes(NamedTuple):
    """Sizes of a detector: width, classes V, queries Q, detections per image in evaluation."""

    embed_dim: int
    num_classes: int
    num_queries: int
    detections: int


ChannelValues = Sequence[float]  # one per color channel, on the scale of the images (0..255)


class PixelScale(NamedTuple):
    """Mean and standard deviation of each channel."""

    mean: ChannelValues
    std: ChannelValues


class DeformableDetector(nn.Module):
    """Images in, losses (training) or detections (evaluation) out.

    A subclass passes its parts to the constructor and implements :meth:`detect`.

    Args:
        parts: the modules.
        sizes: the numbers.
        pixels: how images are normalized.
        aux_loss: train every decoder layer, not only the last.
        query_embeddings: named learned queries, registered between neck and transformer.
        input_format: channel order of ``image``, for training visualizations.
        vis_period: iterations between training visualizations in the event storage; 0 for none.
    """

    opens_pass = True  # forward() runs in a ForwardContext of its own

    transformer: DeformableTransformer
    criterion: Any
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        parts: DetectorParts,
        sizes: DetectorSizes,
        pixels: PixelScale,
        *,
        aux_loss: bool,
        query_embeddings: Mapping[str, nn.Module] | None = None,
        input_format: str | None = "RGB",
        vis_period: int = 0,
    ) -> None:
        super().__init__()
        if vis_period > 0 and input_format is None:
            raise ValueError("vis_period needs input_format, the channel order of the images")
        check_parts(parts, sizes)
        check_losses(parts.criterion)
        self.backbone = parts.backbone
        self.position_embedding = parts.position_embedding
        self.neck = parts.neck
        for name, module in (query_embeddings or {}).items():
            self.add_module(name, module)
        self.transformer = parts.transformer
        self.embed_dim, self.num_classes, self.num_queries = sizes[:3]
        self.select_box_nums_for_evaluation = sizes.detections
        self.criterion = parts.criterion
        self.aux_loss = aux_loss
        self.input_format = input_format
        self.vis_period = vis_period
        for name, values in zip(("pixel_mean", "pixel_std"), pixels, strict=True):
            check_channels(f"model.{name}", values)
            channels = torch.tensor(list(values), dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, channels, persistent=False)
        self._init_neck()

    @property
    def device(self) -> torch.device:
        """Device of the model, to which inputs are moved."""
        return self.pixel_mean.device

    def _init_neck(self) -> None:
        for module in self.neck.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def add_heads(self, *, two_stage: bool, shared: bool) -> None:
        """Register ``class_embed`` and ``bbox_embed``: a pair per layer, and one for proposals."""
        count = self.transformer.decoder.num_layers + int(two_stage)
        self.class_embed, self.bbox_embed = build_heads(
            embed_dim=self.embed_dim,
            num_classes=self.num_classes,
            count=count,
            shared=shared,
            sized_references=two_stage,
        )

    def detect(self, pyramid: Pyramid, targets: list[Target] | None) -> DetectorOutput:
        """Return raw predictions for a batch; ``targets`` are None in evaluation."""
        raise NotImplementedError(f"{type(self).__name__} must implement detect()")

    def forward(
        self, batched_inputs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Return losses in training mode, detections in evaluation mode.

        Args:
            batched_inputs: one dict per image: ``image`` [3, H, W] of values 0..255; in training
                ``instances`` with ``gt_boxes`` and ``gt_classes``; in evaluation optionally
                ``height`` and ``width`` of the original image.

        Returns:
            In training the weighted losses; otherwise per image ``{"instances": Instances}`` with
            ``pred_boxes`` (xyxy, original pixels), ``scores`` and ``pred_classes``.

        Raises:
            ValueError: an image or its ground truth cannot be used; the message names the record.
        """
        with as_converted(self.pixel_mean):
            return run_pass(self, batched_inputs, lambda: self._run(batched_inputs))

    def _run(
        self, batched_inputs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        batch = read_images(
            batched_inputs,
            pixel_mean_C11=self.pixel_mean,
            pixel_std_C11=self.pixel_std,
            padding=PaddingRule.of(self.backbone),
        )
        targets = None
        if self.training:
            targets = prepare_targets(
                batched_inputs,
                num_classes=self.num_classes,
                device=self.device,
                dtype=geometry_dtype(self.pixel_mean.dtype),
            )
        pyramid = build_pyramid(
            self.backbone,
            self.neck,
            self.position_embedding,
            batch,
            share_canvas=self.training,
        )
        output = self.detect(pyramid, targets)
        limit = self.select_box_nums_for_evaluation
        if targets is None:
            results = to_instances(output.layers, batch.sizes, limit=limit)
            return to_original_size(results, batched_inputs)
        if self.vis_period > 0:
            store_first_image(
                batched_inputs,
                lambda: to_instances(output.layers, batch.sizes, limit=limit),
                period=self.vis_period,
                input_format=str(self.input_format),
            )
        return self.losses(output, targets)

    def outputs(self, output: DetectorOutput) -> Outputs:
        """Return upstream's output dict, the criterion's first argument."""
        outputs = output.layers.as_outputs(aux=self.aux_loss)
        if output.encoder is not None:
            outputs["enc_outputs"] = output.encoder
        return outputs

    def losses(self, output: DetectorOutput, targets: list[Target]) -> dict[str, Tensor]:
        """Return the criterion's losses, each times its weight in ``weight_dict`` (default 1)."""
        losses = self.criterion(self.outputs(output), targets, *output.criterion_extras)
        weights = self.criterion.weight_dict
        return {name: value * weights.get(name, 1.0) for name, value in losses.items()}
