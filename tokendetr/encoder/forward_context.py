"""Context of a forward pass, for modules that cannot get it as an argument.

A backbone is called as ``backbone(images)``, and the encoder of an unmodified upstream detector by
upstream's call, so image extents, targets, losses and a recorder reach them through one context
variable. It is set only where a pass begins: by a detector's ``forward``, by the hooks of
:func:`observe` on other libraries' models, by :func:`record_tokens`, and by the first block of a
transformed model that runs alone. Models may be nested, copied, run in threads, wrapped in DDP, or
fail halfway.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor, nn

from tokendetr.encoder.aux_losses import AuxLosses, ReplayedLosses
from tokendetr.encoder.detector_view import DetectorView, check_requirements
from tokendetr.encoder.image_extents import ImageExtents, Size
from tokendetr.encoder.trace import Recorder, TokenTrace, TraceRecorder

__all__ = [
    "ForwardContext",
    "current_pass",
    "image_extents",
    "observe",
    "open_pass",
    "enter_part",
    "leave_part",
    "record_tokens",
    "replay_contexts",
    "run_pass",
]

Output = TypeVar("Output")


class ForwardContext:
    """State of one forward pass besides its tensors.

    Args:
        model: the running model; None if a submodule runs alone.
        batched_inputs: detectron2's list of dicts, the model's first argument.
        recorder: receives token maps and scores.
        part: True if a submodule runs alone.

    Attributes:
        losses: auxiliary losses and outputs of the pass; None without a model.
        extents: image sizes of the running backbone call; None if they were not given.
        block_states: state that a transformed backbone passes from block to block.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        batched_inputs: object = None,
        *,
        recorder: Recorder | None = None,
        part: bool = False,
    ) -> None:
        self.model = model
        self.batched_inputs = batched_inputs
        self.losses = None if model is None else AuxLosses(model, batched_inputs)
        self.recorder = recorder or Recorder()
        self.part = part
        self.extents: ImageExtents | None = None
        self.block_states: Any = None
        self._outer: ForwardContext | None = None

    @property
    def detector(self) -> DetectorView | None:
        """The view of the running model that its sparsifier gets; None without a model."""
        return None if self.model is None else DetectorView(self.model)

    def extents_of(self, images_BCHW: Tensor) -> ImageExtents:
        """Return the unpadded image sizes of a backbone's input.

        Falls back to the running model's inputs if they fit the batch, then to the full canvas.

        Args:
            images_BCHW: the backbone's input.
        """
        batch, _, height, width = images_BCHW.shape
        if self.extents is not None and len(self.extents.rows) == batch:
            return self.extents
        sizes = None if self.losses is None else self.losses.image_sizes
        rows = tuple(range(batch))
        if (
            sizes is not None
            and len(sizes) == batch
            and all(h <= height and w <= width for h, w in sizes)
        ):
            return ImageExtents(rows, sizes)
        return ImageExtents(rows, ((height, width),) * batch)


_CURRENT: ContextVar[ForwardContext | None] = ContextVar("tokendetr_forward_pass", default=None)


def current_pass() -> ForwardContext:
    """Return the context of this thread's innermost pass; an empty one outside of any pass."""
    return _CURRENT.get() or ForwardContext()


def _begin(context: ForwardContext) -> ForwardContext:
    context._outer = _CURRENT.get()
    _CURRENT.set(context)
    return context


def _end(context: ForwardContext) -> None:
    inner = _CURRENT.get()
    if inner is context:
        _CURRENT.set(context._outer)
        return
    while inner is not None and inner._outer is not context:
        inner = inner._outer
    if inner is not None:  # contexts that began later, such as another evaluator's, stay open
        inner._outer = context._outer


def enter_part() -> ForwardContext:
    """Return the running pass; open one if a submodule, such as a backbone, runs alone."""
    context = _CURRENT.get()
    return _begin(ForwardContext(part=True)) if context is None else context


def leave_part() -> None:
    """End the pass if :func:`enter_part` opened it."""
    context = _CURRENT.get()
    if context is not None and context.part:
        _end(context)


@contextmanager
def image_extents(rows: Sequence[int], sizes: Sequence[Size]) -> Iterator[None]:
    """Announce the images of the backbone call inside the ``with`` block.

    Args:
        rows: positions of the images in the model's batch.
        sizes: their unpadded (height, width) in pixels.
    """
    extents = ImageExtents(tuple(rows), tuple((int(h), int(w)) for h, w in sizes))
    context = _CURRENT.get()
    alone = context is None
    if context is None:
        context = _begin(ForwardContext())
    outer, context.extents = context.extents, extents
    try:
        yield
    finally:
        context.extents = outer
        if alone:
            _end(context)


@contextmanager
def record_tokens() -> Iterator[TokenTrace]:
    """Record every encoder pass of this thread inside the ``with`` block.

    Blocks may overlap: each has its own trace and may end before blocks that began inside it.
    """
    outer = _CURRENT.get()
    recorder = TraceRecorder(None if outer is None else outer.recorder)
    context = ForwardContext() if outer is None else copy.copy(outer)
    context.recorder = recorder
    _begin(context)
    try:
        yield recorder.trace
    finally:
        _end(context)


@contextmanager
def open_pass(
    model: nn.Module, batched_inputs: object = (), *, recorder: Recorder | None = None
) -> Iterator[AuxLosses]:
    """Open a pass of a model for the ``with`` block, and collect what its submodules add.

    Args:
        model: the model.
        batched_inputs: detectron2's list of dicts, from which targets are read.
        recorder: receives token maps and scores; None: that of the surrounding pass.
    """
    recorder = recorder or current_pass().recorder
    context = _begin(ForwardContext(model, batched_inputs, recorder=recorder))
    assert context.losses is not None
    succeeded = False
    try:
        yield context.losses
        succeeded = True
    finally:
        _close(context, succeeded=succeeded)


def run_pass(model: nn.Module, batched_inputs: object, forward: Callable[[], Output]) -> Output:
    """Run a model's own forward pass inside its context.

    Args:
        model: the model.
        batched_inputs: its first argument.
        forward: computes losses (in training) or detections.

    Returns:
        The output of ``forward`` with the losses and outputs that submodules added.
    """
    with open_pass(model, batched_inputs) as losses:
        output = forward()
    return losses.merged(output)


def _close(context: ForwardContext, *, succeeded: bool) -> AuxLosses:
    losses = context.losses
    assert losses is not None
    try:
        losses.close(succeeded=succeeded)
    finally:
        _end(context)
    return losses


def replay_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return contexts for ``context_fn`` of ``torch.utils.checkpoint``.

    A recomputed block finds the context of its original pass. Losses that it adds a second time are
    ignored.
    """
    context = _CURRENT.get()
    return nullcontext(), nullcontext() if context is None else _replayed(context)


@contextmanager
def _replayed(original: ForwardContext) -> Iterator[None]:
    context = copy.copy(original)
    context.recorder = Recorder()
    if original.losses is not None:
        context.losses = ReplayedLosses(original.losses)
    _begin(context)
    try:
        yield
    finally:
        _end(context)


def observe(model: nn.Module) -> nn.Module:
    """Open a pass around each call of a detectron2-style model; return the same model.

    For detectors of other libraries: tokendetr's open their passes themselves. Calling it again
    changes nothing; the model's state dict and code stay unchanged.

    Raises:
        UnsupportedDetectorError: the detector lacks something that a sparsifier inside needs.
    """
    check_requirements(model)
    if getattr(model, "opens_pass", False) or _before in model._forward_pre_hooks.values():
        return model
    model.register_forward_pre_hook(_before, with_kwargs=True)
    model.register_forward_hook(_after, with_kwargs=True, always_call=True)
    return model


def _before(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    inputs = args[0] if args else next(iter(kwargs.values()), None)
    _begin(ForwardContext(model, inputs, recorder=current_pass().recorder))


def _after(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    context = _CURRENT.get()
    if context is None or context.model is not model:
        return None  # the pass failed before it began
    losses = _close(context, succeeded=output is not None)
    return None if output is None else losses.merged(output)
