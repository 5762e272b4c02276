"""Our deformable attention inside other people's models: :func:`accelerate`.

The modules keep their parameters, hooks and code; only the function that samples is another one.

Shapes: B image, N all tokens, Q query, M head, D channels of a head, L level, P point.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import FunctionType, MethodType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tokendetr.integrations.rebinding import global_names, rebound
from tokendetr.layers import MultiScaleDeformableAttention
from tokendetr.ops import ms_deform_attn

__all__ = ["Accelerated", "accelerate"]

Shapes = Sequence[Sequence[int]] | Tensor


def _sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Attend as ``multi_scale_deformable_attn_pytorch`` of mmcv and detrex does.

    Args:
        value: [B, N, M, D].
        shapes: (height, width) of each level.
        locations: normalised (x, y), [B, Q, M, L, P, 2].
        weights: [B, Q, M, L, P].

    Returns:
        [B, Q, M * D] in the dtype of the values.
    """
    known = (value.dtype, torch.float64 if value.dtype == torch.float64 else torch.float32)
    locations, weights = (x if x.dtype in known else x.to(known[1]) for x in (locations, weights))
    return ms_deform_attn(value, shapes, locations, weights)


class _Sampler:
    """Stands in for the ``autograd.Function`` of a library's own CUDA kernels."""

    @staticmethod
    def apply(
        value: Tensor,
        shapes: Shapes,
        level_start_index: Tensor,
        locations: Tensor,
        weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Attend as ``_sample`` does."""
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
    """Attend as the layer behind transformers' kernel hook does (sizes are Python's there)."""
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
    """Attend as RT-DETRv2's and D-FINE's function does: levels may differ in their points.

    Levels with fewer points than the most get more, of weight 0.

    Args:
        value: [B, N, M, D].
        shapes: (height, width) of each level.
        locations: normalised (x, y), [B, Q, M, samples, 2], level after level.
        weights: [B, Q, M, samples].
        points_of_levels: P of each level.
        method: "default"; layers of another method are not accelerated.
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


class Accelerated:
    """What :func:`accelerate` changed; :meth:`undo`, or the end of a ``with`` block, takes it back.

    Printing it lists the layers.

    Attributes:
        layers: what runs on our kernels now: path of a module in the model, and what was replaced.
        left: deformable attentions that stay as they were, with the reason.
    """

    def __init__(self, layers: dict[str, str], left: dict[str, str], changes: ExitStack) -> None:
        self.layers = layers
        self.left = left
        self._changes = changes

    def undo(self) -> None:
        """Give the layers their own functions back."""
        self._changes.close()

    def __enter__(self) -> "Accelerated":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        lines = [f"{len(self.layers)} layers run on tokendetr's kernels"]
        lines += [f"  {path or '(the model)'}: {what}" for path, what in self.layers.items()]
        if self.left:
            lines.append(f"{len(self.left)} stay as they were")
            lines += [f"  {path or '(the model)'}: {why}" for path, why in self.left.items()]
        return "\n".join(lines)


def _is_hooked(module: nn.Module) -> bool:
    """Return whether a module is the layer that transformers offers kernels for."""
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and code.co_varnames[1 : code.co_argcount] == _HOOK


def _why_not(module: nn.Module) -> str | None:
    """Return why a deformable attention is left alone; None where nothing speaks against it."""
    if "forward" in vars(module):
        return "its forward was replaced already"
    if _HELD in vars(module) and vars(module)[_HELD] is _sample_ragged:
        return "its function was replaced already"
    for name in ("method", "decoder_method"):
        method = getattr(module, name, "default")
        if isinstance(method, str) and method != "default":
            return f"it samples by the method {method!r}"
    return None


def _substitute(module: nn.Module) -> tuple[str, str, Any] | None:
    """Return what to replace in a module: the name of it, the attribute, and its new value."""
    held = vars(module).get(_HELD)
    if isinstance(held, FunctionType):
        substitute = _sample_ragged if held is _sample_ragged else _SUBSTITUTES.get(held.__name__)
        return None if substitute is None else (held.__name__, _HELD, substitute)
    if _is_hooked(module):
        return "forward", "forward", _hook_forward
    forward = type(module).forward
    names = global_names(forward) & _SUBSTITUTES.keys()
    if not names or not isinstance(forward, FunctionType):
        return None
    method = MethodType(rebound(forward, {name: _SUBSTITUTES[name] for name in names}), module)
    return ", ".join(sorted(names)), "forward", method


def _change(module: nn.Module, attribute: str, value: Any) -> Callable[[], None]:
    """Set an attribute of an instance; return what undoes it."""
    before = dict(vars(module))

    def undo() -> None:
        if attribute in before:
            vars(module)[attribute] = before[attribute]
        else:
            vars(module).pop(attribute, None)

    vars(module)[attribute] = value
    return undo


def accelerate(model: nn.Module) -> Accelerated:
    """Put our kernels into every deformable attention of a model, of encoders and decoders.

    Works on detrex's and mmcv's ``MultiScaleDeformableAttention``, the ``MSDeformAttn`` of
    Deformable DETR, Mask2Former and MaskDINO, and the models of Hugging Face transformers:
    Deformable DETR, Grounding DINO, Mask2Former, OneFormer, RT-DETR, RT-DETRv2, D-FINE and those
    built like them. Results differ by rounding; the model trains, autocasts, compiles and saves
    its state as before, and copies of it are accelerated too. Undo it before you export or pickle
    the whole model.

    Args:
        model: the model, on any device; where the kernels cannot run, plain PyTorch does.

    Returns:
        The handle that tells which layers took it, and undoes it.

    Raises:
        ValueError: where no deformable attention of a known kind is found.
    """
    layers: dict[str, str] = {}
    left: dict[str, str] = {}
    with ExitStack() as changes:
        for path, module in model.named_modules():
            if isinstance(module, MultiScaleDeformableAttention):
                left[path] = "it is tokendetr's own, which runs on the kernels"
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
                f"{type(model).__name__} has no deformable attention that is known here: no module "
                f"that calls one of {', '.join(sorted(_SUBSTITUTES))}, and none of transformers' "
                "MultiScaleDeformableAttention"
            )
        return Accelerated(layers, left, changes.pop_all())
