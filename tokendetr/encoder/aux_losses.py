"""Auxiliary losses that submodules add to a detector's loss dict during its forward pass.

Shapes: G box.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from detrex.layers import box_xyxy_to_cxcywh
from torch import Tensor, nn

from tokendetr.compat.cached_property import cached_property
from tokendetr.layers.precision import geometry_dtype

__all__ = ["AuxLosses", "ImageTargets", "ReplayedLosses"]


@dataclass(frozen=True)
class ImageTargets:
    """Annotations of one image.

    Attributes:
        boxes_cxcywh_norm: float [G, 4], relative to the image's own (unpadded) width and height.
        labels: long [G], class indices from 0.
        image_size: (height, width) in pixels.
        masks: detectron2's ``gt_masks`` of the G objects, or None.
    """

    boxes_cxcywh_norm: Tensor
    labels: Tensor
    image_size: tuple[int, int]
    masks: Any = None


class AuxLosses:
    """Auxiliary losses and outputs that submodules add during one forward pass of a model.

    Args:
        model: the model; :attr:`criterion` is its ``criterion``, or None.
        batched_inputs: detectron2's list of dicts.
    """

    def __init__(self, model: nn.Module, batched_inputs: object) -> None:
        self.owner = model
        self.criterion: Any = getattr(model, "criterion", None)
        self.losses: dict[str, Tensor] = {}
        self.outputs: dict[int, dict[str, Any]] = {}
        self._batched_inputs = batched_inputs
        self._waiting: list[Callable[[], None]] = []
        self._entered = ExitStack()

    @cached_property
    def image_sizes(self) -> tuple[tuple[int, int], ...] | None:
        """(height, width) of each input image in pixels; None if the inputs have no images."""
        inputs = self._batched_inputs
        if not isinstance(inputs, Sequence):
            return None
        sizes = []
        for record in inputs:
            image = record.get("image") if isinstance(record, Mapping) else None
            if not isinstance(image, Tensor) or image.dim() != 3:
                return None
            sizes.append((int(image.shape[-2]), int(image.shape[-1])))
        return tuple(sizes)

    @property
    def is_annotated(self) -> bool:
        """True if every image has ``instances``."""
        inputs = self._batched_inputs
        return isinstance(inputs, Sequence) and all(
            isinstance(record, Mapping) and "instances" in record for record in inputs
        )

    @cached_property
    def targets(self) -> list[ImageTargets]:
        """Annotations of each image, on the model's device.

        Raises:
            KeyError: an image has no ``instances``; the message names it.
            TypeError: the inputs are not a list of dicts.
        """
        inputs = self._batched_inputs
        if not isinstance(inputs, Sequence) or not all(isinstance(i, Mapping) for i in inputs):
            raise TypeError(
                "auxiliary losses need detectron2's batched inputs (a list of dicts) as the "
                f"model's first argument, got {type(inputs).__name__}"
            )
        device, dtype = _geometry_of(self.owner)
        return [_image_targets(index, record, device, dtype) for index, record in enumerate(inputs)]

    def add(self, name: str, loss: Tensor) -> None:
        """Add a weighted scalar loss to the model's loss dict.

        Args:
            name: a new key of the loss dict, such as ``loss_token_score``.
            loss: a scalar.

        Raises:
            ValueError: the name is taken, or the loss is not a scalar.
        """
        if name in self.losses:
            raise ValueError(f"loss {name!r} was added twice in one forward pass")
        if loss.dim() != 0:
            raise ValueError(f"loss {name!r} must be a scalar, got shape {list(loss.shape)}")
        self.losses[name] = loss

    def add_output(self, image: int, name: str, value: Any) -> None:
        """Add an entry, such as a selection map, to an image's output dict in evaluation.

        Args:
            image: position of the image in the batch.
            name: a new key of the image's output dict.
            value: anything.
        """
        self.outputs.setdefault(image, {})[name] = value

    def when_decoded(self, callback: Callable[[], None]) -> None:
        """Register a callback for when the model's own forward pass has succeeded.

        Callbacks run in order of registration, before losses are merged, so they may still add
        losses: those that depend on what the decoder does after the encoder.
        """
        self._waiting.append(callback)

    def enter(self, manager: AbstractContextManager[Any]) -> None:
        """Enter a context manager and leave it when the forward pass ends, even if it fails."""
        self._entered.enter_context(manager)

    def close(self, *, succeeded: bool) -> None:
        """End the forward pass; called once, by the pass's owner."""
        with self._entered:
            if succeeded:
                for callback in self._waiting:
                    callback()

    def merged(self, output: Any) -> Any:
        """Return the model's output with the losses and outputs that its submodules added.

        Where the model itself returns a loss of the same name, the added one ends in ``_tokens``.

        Raises:
            TypeError: losses were added and the model returned no dict of losses.
        """
        if not self.owner.training:
            return _with_outputs(output, self.outputs)
        if not self.losses:
            return output
        name = type(self.owner).__name__
        if not isinstance(output, Mapping):
            raise TypeError(
                f"submodules of {name} added the losses {sorted(self.losses)}, "
                f"but in training it returned a {type(output).__name__} instead of a dict of losses"
            )
        merged = dict(output)
        for key, loss in self.losses.items():
            while key in merged:
                key += "_tokens"
            merged[key] = loss
        return merged


class ReplayedLosses(AuxLosses):
    """Losses of a block that activation checkpointing recomputes: ignored, since they were added.

    Args:
        original: the losses of the pass in which the block ran first.
    """

    def __init__(self, original: AuxLosses) -> None:
        super().__init__(original.owner, original._batched_inputs)
        self.criterion = original.criterion

    def add(self, name: str, loss: Tensor) -> None:
        """Ignore the loss: it was added when the block ran first."""

    def add_output(self, image: int, name: str, value: Any) -> None:
        """Ignore the output, likewise."""

    def when_decoded(self, callback: Callable[[], None]) -> None:
        """Ignore the callback, likewise."""

    def enter(self, manager: AbstractContextManager[Any]) -> None:
        """Ignore the manager, likewise."""


def _with_outputs(results: Any, outputs: Mapping[int, Mapping[str, Any]]) -> Any:
    """Return a model's list of detections with its submodules' outputs added to each dict."""
    if not outputs or not isinstance(results, Sequence):
        return results
    return [
        {**result, **outputs.get(image, {})} if isinstance(result, Mapping) else result
        for image, result in enumerate(results)
    ]


def _geometry_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return device and dtype of a model's boxes."""
    parameter = next(model.parameters(), torch.empty(0))
    device = getattr(model, "device", None) or parameter.device
    return torch.device(device), geometry_dtype(parameter.dtype)


def _image_targets(
    index: int, record: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> ImageTargets:
    instances = record.get("instances")
    if instances is None:
        raise KeyError(
            f"image {index} of the batch ({record.get('file_name', 'no file name')}) "
            "has no 'instances': losses of tokens need annotations"
        )
    height, width = instances.image_size
    boxes_xyxy_px = instances.gt_boxes.tensor.to(device, dtype)
    size = boxes_xyxy_px.new_tensor([width, height, width, height])
    return ImageTargets(
        boxes_cxcywh_norm=box_xyxy_to_cxcywh(boxes_xyxy_px) / size,
        labels=instances.gt_classes.to(device),
        image_size=(int(height), int(width)),
        masks=instances.gt_masks if instances.has("gt_masks") else None,
    )
