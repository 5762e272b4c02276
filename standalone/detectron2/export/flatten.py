"""Flatten nested inputs and outputs, so that models with detectron2's inputs can be traced."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

__all__ = ["TracingAdapter", "flatten_to_tuple"]

Rebuild = Callable[[Sequence[Any]], Any]


def _children(obj: Any) -> tuple[list[Any], Rebuild] | None:
    """Return the parts of a container and how to put it together again; None for leaves."""
    if isinstance(obj, (list, tuple)):
        return list(obj), type(obj)
    if isinstance(obj, Mapping):
        keys = list(obj)
        return list(obj.values()), lambda parts: dict(zip(keys, parts, strict=True))
    if isinstance(obj, Instances):
        names, size = list(obj.get_fields()), obj.image_size
        values = list(obj.get_fields().values())
        return values, lambda parts: Instances(size, **dict(zip(names, parts, strict=True)))
    if isinstance(obj, Boxes):
        return [obj.tensor], lambda parts: Boxes(parts[0])
    if isinstance(obj, ImageList):
        sizes = obj.image_sizes
        return [obj.tensor], lambda parts: ImageList(parts[0], sizes)
    return None


def flatten_to_tuple(obj: Any) -> tuple[tuple[Any, ...], Rebuild]:
    """Flatten nested lists, tuples, dicts, ``Instances``, ``Boxes`` and ``ImageList``.

    Returns:
        The leaves in order, and a function from as many leaves back to the structure.
    """
    parts = _children(obj)
    if parts is None:
        return (obj,), lambda leaves: leaves[0]
    values, build = parts
    flat = [flatten_to_tuple(value) for value in values]
    counts = [len(leaves) for leaves, _ in flat]

    def rebuild(leaves: Sequence[Any]) -> Any:
        rebuilt, start = [], 0
        for count, (_, rebuild_part) in zip(counts, flat, strict=True):
            rebuilt.append(rebuild_part(leaves[start : start + count]))
            start += count
        return build(rebuilt)

    return tuple(leaf for leaves, _ in flat for leaf in leaves), rebuild


class TracingAdapter(nn.Module):
    """Adapt a model with nested inputs and outputs to tuples of tensors.

    Args:
        model: the model.
        inputs: an example: one argument, or a tuple of arguments; nested as it likes.
        inference_func: called as ``inference_func(model, *inputs)``; by default calls the model.
        allow_non_tensor: keep other leaves than tensors as constants of the inputs, and drop them
            from the outputs; otherwise they are an error.

    Attributes:
        flattened_inputs: the tensors of the example, which the adapter is called with.
        outputs_schema: after a call, rebuilds the model's own output from the adapter's.
    """

    flattened_inputs: tuple[Tensor, ...]

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        inference_func: Callable[..., Any] | None = None,
        allow_non_tensor: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        self.model = model
        self.inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        self.inference_func = inference_func or (lambda model, *args: model(*args))
        self.allow_non_tensor = allow_non_tensor
        self._leaves, self._rebuild_inputs = flatten_to_tuple(self.inputs)
        if not allow_non_tensor:
            self._require_tensors(self._leaves, "inputs")
        self.flattened_inputs = tuple(leaf for leaf in self._leaves if isinstance(leaf, Tensor))
        self.outputs_schema: Rebuild | None = None

    @staticmethod
    def _require_tensors(leaves: Sequence[Any], what: str) -> None:
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise ValueError(
                    f"TracingAdapter can only trace {what} made of tensors, "
                    f"but found {type(leaf)}. With allow_non_tensor=True it is kept as a constant."
                )

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        """Run the model on the tensors of an input and return the tensors of its output."""
        given = iter(args)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        with torch.no_grad():
            outputs = self.inference_func(self.model, *self._rebuild_inputs(leaves))
        flat, rebuild = flatten_to_tuple(outputs)
        if not self.allow_non_tensor:
            self._require_tensors(flat, "outputs")
            self.outputs_schema = rebuild
        else:
            self.outputs_schema = _fill_constants(flat, rebuild)
        return tuple(leaf for leaf in flat if isinstance(leaf, Tensor))


def _fill_constants(leaves: Sequence[Any], rebuild: Rebuild) -> Rebuild:
    """Return ``rebuild`` for tensors alone: the other leaves keep the values they have now."""
    constants = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]

    def rebuild_from_tensors(tensors: Sequence[Any]) -> Any:
        given = iter(tensors)
        return rebuild([next(given) if slot is None else slot[0] for slot in constants])

    return rebuild_from_tensors
