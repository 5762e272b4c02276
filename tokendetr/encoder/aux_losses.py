"""Losses that parts of a model ask for, without the model knowing.

A supervised model opens a context when its forward pass begins and closes it when the pass ends.
Parts that run in between find it with :func:`current`, look at the targets, and add losses; in
training these join the losses that the model returns. The state dict and the model's own code do
not change:

    model = supervise(model)
    losses = model(batched_inputs)      # the model's own losses and those its parts added

Nothing is stored on a module: contexts live in a context variable, so models may be nested, copied,
run in threads, wrapped in DDP, or fail in the middle.
"""

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from detrex.layers import box_xyxy_to_cxcywh
from torch import Tensor, nn


@dataclass(frozen=True)
class ImageTargets:
    """What is annotated in one image.

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


class Supervision:
    """The context of one forward pass of one supervised model.

    Args:
        model: the model; its ``criterion`` (or None) is at :attr:`criterion`.
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

    @functools.cached_property
    def image_sizes(self) -> tuple[tuple[int, int], ...] | None:
        """(height, width) of each image in pixels, as the model got it; None where unknown."""
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
        """Whether every image has ``instances``."""
        inputs = self._batched_inputs
        return isinstance(inputs, Sequence) and all(
            isinstance(record, Mapping) and "instances" in record for record in inputs
        )

    @functools.cached_property
    def targets(self) -> list[ImageTargets]:
        """Per image the annotations, on the model's device.

        Raises:
            KeyError: where an image has no ``instances``; the message says which.
            TypeError: where the inputs are no list of dicts.
        """
        inputs = self._batched_inputs
        if not isinstance(inputs, Sequence) or not all(isinstance(i, Mapping) for i in inputs):
            raise TypeError(
                "supervision needs detectron2's batched inputs (a list of dicts) as the model's "
                f"first argument, got {type(inputs).__name__}"
            )
        device = _device_of(self.owner)
        return [_image_targets(index, record, device) for index, record in enumerate(inputs)]

    def add(self, name: str, loss: Tensor) -> None:
        """Ask for a loss, already weighted, to join the model's losses.

        Args:
            name: a new key of the loss dict, such as ``loss_token_score``.
            loss: a scalar.

        Raises:
            ValueError: where the name is taken or the loss is no scalar.
        """
        if name in self.losses:
            raise ValueError(f"loss {name!r} was added twice in one forward pass")
        if loss.dim() != 0:
            raise ValueError(f"loss {name!r} must be a scalar, got shape {list(loss.shape)}")
        self.losses[name] = loss

    def add_output(self, image: int, name: str, value: Any) -> None:
        """Put something beside an image's detections in evaluation, such as a selection map.

        Args:
            image: position of the image in the batch.
            name: a new key of the image's output dict.
            value: anything.
        """
        self.outputs.setdefault(image, {})[name] = value

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call back when the model's own forward pass has succeeded, before losses are merged.

        What the model does after the caller ran is then known, and losses may still be added.
        Callbacks run in the order they were given.
        """
        self._waiting.append(callback)

    def enter(self, manager: AbstractContextManager[Any]) -> None:
        """Enter a context manager and leave it when the forward pass ends, also where it fails."""
        self._entered.enter_context(manager)

    def close(self, *, succeeded: bool) -> None:
        """End the forward pass: called once, by the supervised model."""
        with self._entered:
            if succeeded:
                for callback in self._waiting:
                    callback()


class _Replay(Supervision):
    """The context of a block that runs again in the backward pass: it collects nothing."""

    def __init__(self, original: Supervision) -> None:
        super().__init__(original.owner, original._batched_inputs)
        self.criterion = original.criterion

    def add(self, name: str, loss: Tensor) -> None:
        """Ignore the loss: it was added when the block ran first."""

    def add_output(self, image: int, name: str, value: Any) -> None:
        """Ignore the output, likewise."""

    def when_done(self, callback: Callable[[], None]) -> None:
        """Ignore the callback, likewise."""

    def enter(self, manager: AbstractContextManager[Any]) -> None:
        """Ignore the manager, likewise."""


_OPEN: ContextVar[tuple[Supervision, ...]] = ContextVar("tokendetr_supervision", default=())


def current() -> Supervision | None:
    """Return the context of the innermost supervised model running in this thread, or None."""
    stack = _OPEN.get()
    return stack[-1] if stack else None


def replay_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return ``context_fn`` of ``torch.utils.checkpoint``: blocks that are recomputed find their
    context again.

    The losses they add the second time are ignored, so every loss counts once.
    """
    context = current()
    if context is None:
        return nullcontext(), nullcontext()
    return nullcontext(), _replaying(_Replay(context))


@contextmanager
def _replaying(context: Supervision) -> Iterator[None]:
    token = _OPEN.set((*_OPEN.get(), context))
    try:
        yield
    finally:
        _OPEN.reset(token)


@contextmanager
def opened(model: nn.Module, batched_inputs: object = ()) -> Iterator[Supervision]:
    """Act inside the ``with`` block as if a model's forward pass were running.

    For whoever runs a part of a detector alone, such as its encoder. Losses that the part adds are
    left in the context.

    Args:
        model: a supervised model.
        batched_inputs: detectron2's list of dicts, where parts need targets.
    """
    context = Supervision(model, batched_inputs)
    token = _OPEN.set((*_OPEN.get(), context))
    try:
        yield context
    except BaseException:
        context.close(succeeded=False)
        raise
    else:
        context.close(succeeded=True)
    finally:
        _OPEN.reset(token)


def supervise(model: nn.Module) -> nn.Module:
    """Let the parts of a detectron2-style model ask for losses; return the same model.

    Calling it again on the same model changes nothing.
    """
    if _open not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_open, with_kwargs=True)
        model.register_forward_hook(_close, with_kwargs=True, always_call=True)
    return model


def build_supervised(
    *, supervised_class: str | Callable[..., nn.Module], **kwargs: object
) -> nn.Module:
    """Construct a model and supervise it: what a config's model node is pointed at.

    Args:
        supervised_class: the model's class, or its full dotted name.
        **kwargs: the class's arguments.

    Raises:
        ImportError: where the name leads nowhere.
    """
    build = _locate(supervised_class) if isinstance(supervised_class, str) else supervised_class
    return supervise(build(**kwargs))


def _open(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    inputs = args[0] if args else next(iter(kwargs.values()), None)
    _OPEN.set((*_OPEN.get(), Supervision(model, inputs)))


def _close(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    stack = _OPEN.get()
    if not stack or stack[-1].owner is not model:
        return None  # the pass failed before it began
    try:
        stack[-1].close(succeeded=output is not None)
    finally:
        _OPEN.set(stack[:-1])
    if output is None:
        return None
    if not model.training:
        return _with_outputs(output, stack[-1].outputs)
    losses = stack[-1].losses
    if not losses:
        return None
    if not isinstance(output, Mapping):
        raise TypeError(
            f"{type(model).__name__} was asked for the losses {sorted(losses)}, "
            f"but in training it returned a {type(output).__name__} instead of a dict of losses"
        )
    taken = sorted(set(losses) & set(output))
    if taken:
        raise ValueError(f"{type(model).__name__} already returns losses named {taken}")
    return {**output, **losses}


def _with_outputs(results: Any, outputs: Mapping[int, Mapping[str, Any]]) -> Any:
    """Return a model's list of detections with what its parts put beside them."""
    if not outputs or not isinstance(results, Sequence):
        return None  # the results stay as they are
    return [
        {**result, **outputs.get(image, {})} if isinstance(result, Mapping) else result
        for image, result in enumerate(results)
    ]


def _locate(name: str) -> Callable[..., nn.Module]:
    module_name, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(f"cannot find the class {name!r} to supervise: {error}") from error


def _device_of(model: nn.Module) -> torch.device:
    device = getattr(model, "device", None)
    if device is not None:
        return torch.device(device)
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _image_targets(index: int, record: Mapping[str, Any], device: torch.device) -> ImageTargets:
    instances = record.get("instances")
    if instances is None:
        raise KeyError(
            f"image {index} of the batch ({record.get('file_name', 'no file name')}) "
            "has no 'instances': losses of tokens need annotations"
        )
    height, width = instances.image_size
    boxes_xyxy_px = instances.gt_boxes.tensor.to(device)
    size = boxes_xyxy_px.new_tensor([width, height, width, height])
    return ImageTargets(
        boxes_cxcywh_norm=box_xyxy_to_cxcywh(boxes_xyxy_px) / size,
        labels=instances.gt_classes.to(device),
        image_size=(int(height), int(width)),
        masks=instances.gt_masks if instances.has("gt_masks") else None,
    )
