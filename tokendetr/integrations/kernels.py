"""Run the deformable attention of other libraries' models on our kernels: :func:`accelerate`.

The modules keep their parameters, hooks and code; only the function that samples is replaced.

Shapes: B image, N all tokens, Q query, M head, D channels of a head, L level, P point.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from tokendetr.integrations.rebinding import looked_up, rebound
from tokendetr.layers import MultiScaleDeformableAttention
from tokendetr.layers.undoable import Undoable
from tokendetr.ops import ms_deform_attn

__all__ = ["Accelerated", "accelerate"]

Shapes = Sequence[Sequence[int]] | Tensor


def _sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample with the signature of ``multi_scale_deformable_attn_pytorch`` of mmcv and detrex.

    Args:
        value: [B, N, M, D].
        shapes: (height, width) of each level.
        locations: normalized (x, y), [B, Q, M, L, P, 2].
        weights: [B, Q, M, L, P].

    Returns:
        [B, Q, M * D] in the dtype of the values.
    """
    known = (value.dtype, torch.float64 if value.dtype == torch.float64 else torch.float32)
    locations, weights = (x if x.dtype in known else x.to(known[1]) for x in (locations, weights))
    return ms_deform_attn(value, shapes, locations, weights)


class _Sampler:
    """Replacement for the ``autograd.Function`` of a library's own CUDA kernels."""

    @staticmethod
    def apply(
        value: Tensor,
        shapes: Shapes,
        level_start_index: Tensor,
        locations: Tensor,
        weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Sample as ``_sample`` does."""
        return _sample(value, shapes, locations, weights)


def _hook_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: list[tuple[int, int]],
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Sample with the signature of the layer that transformers' kernel hook replaces.

    The list of shapes is used, since reading the tensor would synchronize with the GPU.
    """
    return _sample(value, value_spatial_shapes_list, sampling_locations, attention_weights)


_HOOK = (
    "value",
    "value_spatial_shapes",
    "value_spatial_shapes_list",
    "level_start_index",
    "sampling_locations",
    "attention_weights",
    "im2col_step",
)


def _sample_ragged(
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    points_of_levels: Sequence[int],
    method: str = "default",
) -> Tensor:
    """Sample with the signature of RT-DETRv2 and D-FINE, whose levels may have different points.

    The kernels need the same number of points in all levels, so points of weight 0 are added.

    Args:
        value: [B, N, M, D].
        shapes: (height, width) of each level.
        locations: normalized (x, y), [B, Q, M, samples, 2], level after level.
        weights: [B, Q, M, samples].
        points_of_levels: number of points P of each level.
        method: "default"; layers with another method are not accelerated.

    Raises:
        ValueError: another method is given.
    """
    if method != "default":
        raise ValueError(f"sampling by method {method!r} has no kernel: undo tokendetr.accelerate")
    levels, most = len(points_of_levels), max(points_of_levels)
    if min(points_of_levels) != most:
        starts = [sum(points_of_levels[:level]) for level in range(levels)]
        rows = [
            (start + point, point < count) if point < count else (start, False)
            for start, count in zip(starts, points_of_levels, strict=True)
            for point in range(most)
        ]
        index = torch.tensor([row for row, _ in rows], device=value.device)
        real = torch.tensor([is_real for _, is_real in rows], device=value.device)
        locations = locations.index_select(3, index)
        weights = weights.index_select(3, index) * real
    return _sample(
        value, shapes, locations.unflatten(3, (levels, most)), weights.unflatten(3, (levels, most))
    )


_SUBSTITUTES: Mapping[str, Any] = {
    "multi_scale_deformable_attn_pytorch": _sample,  # mmcv, detrex
    "multi_scale_deformable_attention": _sample,  # transformers
    "ms_deform_attn_core_pytorch": _sample,  # the original's
    "MultiScaleDeformableAttnFunction": _Sampler,  # mmcv, detrex
    "MSDeformAttnFunction": _Sampler,  # the original's, Mask2Former's, MaskDINO's
    "multi_scale_deformable_attention_v2": _sample_ragged,  # transformers: RT-DETRv2, D-FINE
}
_HELD = "ms_deformable_attn_core"
"""Attribute in which D-FINE's layers hold the function."""


class Accelerated(Undoable):
    """Handle of :func:`accelerate`; printing it lists the layers.

    Attributes:
        layers: path of a module that now runs on our kernels -> what was replaced in it.
        left: path of a deformable attention that was left unchanged -> the reason.
    """

    def __init__(self, layers: dict[str, str], left: dict[str, str], changes: ExitStack) -> None:
        self.layers = layers
        self.left = left
        self._changes = changes

    def undo(self) -> None:
        """Restore the layers' own functions."""
        self._changes.close()

    def __str__(self) -> str:
        lines = [f"{len(self.layers)} layers run on tokendetr's kernels"]
        lines += [f"  {path or '(the model)'}: {what}" for path, what in self.layers.items()]
        if self.left:
            lines.append(f"{len(self.left)} are unchanged")
            lines += [f"  {path or '(the model)'}: {why}" for path, why in self.left.items()]
        return "\n".join(lines)


def _is_hooked(module: nn.Module) -> bool:
    """Return whether a module is the layer that transformers allows kernels to replace."""
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and code.co_varnames[1 : code.co_argcount] == _HOOK


def _arguments(function: Any) -> list[str] | None:
    """Return the arguments of a function or an ``autograd.Function``.

    None if they are open, or if there is no function, as in OneFormer where it is not compiled.
    """
    function = getattr(function, "forward", function)
    if not callable(function):
        return None
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters):
        return None
    return [each.name for each in parameters if each.name != "ctx"]


def _why_not(module: nn.Module) -> str | None:
    """Return why a deformable attention cannot be accelerated, None if it can."""
    if "forward" in vars(module):
        return "its forward has been replaced already"
    if _HELD in vars(module) and vars(module)[_HELD] is _sample_ragged:
        return "its function has been replaced already"
    for name in ("method", "decoder_method"):
        method = getattr(module, name, "default")
        if isinstance(method, str) and method != "default":
            return f"it samples by the method {method!r}"
    for name, function in looked_up(type(module).forward).items():
        if name in _SUBSTITUTES:
            substitute, theirs = _SUBSTITUTES[name], _arguments(function)
            ours = inspect.signature(getattr(substitute, "apply", substitute)).parameters
            if theirs is not None and len(theirs) != len(ours):
                return f"its {name} takes other arguments: {', '.join(theirs)}"
    return None


def _substitute(module: nn.Module) -> tuple[str, str, Any] | None:
    """Return what to replace in a module: name of the function, attribute, and new value."""
    held = vars(module).get(_HELD)
    if isinstance(held, FunctionType):
        substitute = _sample_ragged if held is _sample_ragged else _SUBSTITUTES.get(held.__name__)
        return None if substitute is None else (held.__name__, _HELD, substitute)
    if _is_hooked(module):
        return "forward", "forward", _hook_forward
    forward = type(module).forward
    names = looked_up(forward).keys() & _SUBSTITUTES.keys()
    if not names or not isinstance(forward, FunctionType):
        return None
    method = MethodType(rebound(forward, {name: _SUBSTITUTES[name] for name in names}), module)
    return ", ".join(sorted(names)), "forward", method


def _change(module: nn.Module, attribute: str, value: Any) -> Callable[[], None]:
    """Set an attribute of an instance; return a function that undoes it."""
    before = dict(vars(module))

    def undo() -> None:
        if attribute in before:
            vars(module)[attribute] = before[attribute]
        else:
            vars(module).pop(attribute, None)

    vars(module)[attribute] = value
    return undo


def accelerate(model: nn.Module) -> Accelerated:
    """Run all deformable attentions of a model, in encoders and decoders, on our kernels.

    Supported are detrex's and mmcv's ``MultiScaleDeformableAttention``, the ``MSDeformAttn`` of
    Deformable DETR, Mask2Former and MaskDINO, and the models of Hugging Face transformers:
    Deformable DETR, Grounding DINO, Mask2Former, OneFormer, RT-DETR, RT-DETRv2, D-FINE and models
    with the same layers. Results differ only by rounding. The model can be trained, autocast,
    compiled and saved as before, and its copies are accelerated too. Undo it before exporting or
    pickling the whole model.

    Args:
        model: the model, on any device; where the kernels cannot run, plain PyTorch is used.

    Returns:
        A handle that lists the accelerated layers and undoes the change.

    Raises:
        ValueError: no deformable attention of a known kind is found.
    """
    layers: dict[str, str] = {}
    left: dict[str, str] = {}
    with ExitStack() as changes:
        for path, module in model.named_modules():
            if isinstance(module, MultiScaleDeformableAttention):
                left[path] = "it is tokendetr's own, which uses the kernels already"
                continue
            found = _substitute(module)
            if found is None:
                continue
            name, attribute, value = found
            reason = _why_not(module)
            if reason is not None:
                left[path] = reason
                continue
            changes.callback(_change(module, attribute, value))
            layers[path] = f"{name} of {type(module).__module__}.{type(module).__qualname__}"
        if not layers and not left:
            raise ValueError(
                f"{type(model).__name__} has no deformable attention of a known kind: no module "
                f"calls one of {', '.join(sorted(_SUBSTITUTES))} or is transformers' "
                "MultiScaleDeformableAttention"
            )
        return Accelerated(layers, left, changes.pop_all())
