"""Count the operations of a detector's forward pass by the convention of the papers.

The figures of detection papers come from fvcore: a multiply-add is one operation; matrix products,
convolutions, normalizations, interpolations and bilinear samples count; element-wise work is free.
Here the same rules are applied to the operators as they are dispatched, so the model need not be
traceable, and shapes suffice without computing anything. Deformable attention is counted as fvcore
counts its ``grid_sample`` form, whether or not the extension is built.

    report = count_flops(model, synthetic_inputs(800, 1066), arithmetic=False)
    report.total, report.by_part["encoder"]

:func:`flop_handles` provides the rules for our operators to fvcore's own analyses.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.flop_counter import flop_registry

from tokendetr.analysis.flop_rules import RULES, flop_handles
from tokendetr.compat.torch_private import TorchDispatchMode, tree_map_only
from tokendetr.layers.modes import evaluating

__all__ = [
    "BLENDED_SIZES",
    "PARTS",
    "FlopReport",
    "blended_flops",
    "count_flops",
    "flop_handles",
    "mean_report",
    "pyramid_shapes",
    "synthetic_inputs",
]

PARTS = ("backbone", "neck", "encoder", "decoder", "heads", "other")
"""Parts of a detector in the order of its forward pass. "heads" are all class and box heads,
including those that score proposals; "other" is the rest, such as the projection of proposals."""

BLENDED_SIZES: tuple[tuple[float, tuple[int, int]], ...] = (
    (0.225, (800, 1066)),
    (0.775, (850, 1040)),
)
"""(weight, (height, width)) of two sizes that represent the first 100 images of COCO val, over
which the published figures of DINO and its relatives are averaged."""

_PART_OF_PREFIX = {
    "backbone": "backbone",
    "neck": "neck",
    "transformer.encoder": "encoder",
    "transformer.decoder": "decoder",
}
_HEADS = frozenset({"class_embed", "bbox_embed"})
_ACTIVE = frozenset({"conv", "matmul"})
"""Labels of the operators whose outputs fvcore counts as activations."""


@dataclass(frozen=True)
class FlopReport:
    """Operations of one forward pass; a multiply-add is one.

    Attributes:
        total: operations of the whole model.
        by_part: operations of each of :data:`PARTS`; they sum to the total.
        by_module: operations of each module with its submodules, by dotted name; a shared module
            is listed under its first name.
        by_operator: operations of each kind of operator.
        activations: number of output elements of convolutions and products, by kind of operator.
        uncounted: number of calls of operators without a rule, whose work the total lacks.
    """

    total: float
    by_part: Mapping[str, float]
    by_module: Mapping[str, float]
    by_operator: Mapping[str, float]
    activations: Mapping[str, float]
    uncounted: Mapping[str, float] = field(default_factory=dict)


class _Counting(TorchDispatchMode):
    """Dispatch mode that counts operators by the module that runs.

    Args:
        model: the model whose modules are distinguished.
        arithmetic: compute counted operators; otherwise they return zeros.
    """

    def __init__(self, model: nn.Module, *, arithmetic: bool) -> None:
        super().__init__()
        self.own: Counter[str] = Counter()
        self.by_operator: Counter[str] = Counter()
        self.activations: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self._arithmetic = arithmetic
        self._running = [""]
        self._names = {module: name for name, module in model.named_modules()}

    @contextmanager
    def following(self) -> Iterator[None]:
        """Track which module runs, inside the ``with`` block."""
        with (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ):
            yield

    def _enter(self, module: nn.Module, *_: Any) -> None:
        if module in self._names:
            self._running.append(self._names[module])

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if module in self._names:
            self._running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket._qualified_op_name
        rule = RULES.get(name)
        if rule is None:
            if func.namespace not in ("aten", "prim") or func.overloadpacket in flop_registry:
                self.uncounted[name] += 1
            return func(*args, **kwargs)
        result = func(*args, **kwargs) if self._arithmetic else _zeros_from(func, args, kwargs)
        label, formula = rule
        output = result[0] if isinstance(result, (tuple, list)) else result
        macs = formula(args, output)
        self.own[self._running[-1]] += macs
        self.by_operator[label] += macs
        if label in _ACTIVE:
            self.activations[label] += output.numel()
        return result


def _zeros_from(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return zeros with the shapes and types of an operator's results."""
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    shapes = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (tuple(args), dict(kwargs)))
    results = func(*shapes[0], **shapes[1])
    return tree_map_only(Tensor, lambda tensor: _zeros_like(tensor, device), results)


def _zeros_like(tensor: Tensor, device: torch.device) -> Tensor:
    """Return zeros with the shape, strides and type of a tensor that has no data.

    On a CPU, NumPy takes them from calloc: pages that the kernel zeroes when they are first used,
    where filling a large network's results took half of the time of a count.
    """
    if device.type != "cpu":
        return torch.zeros_like(tensor, device=device)
    size = max(tensor.untyped_storage().nbytes(), tensor.element_size())
    data = torch.from_numpy(np.zeros(size, np.uint8))
    return data.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())


def synthetic_inputs(
    height: int, width: int, *, batch_size: int = 1, seed: int = 0
) -> list[dict[str, Any]]:
    """Return detectron2 inputs of seeded noise.

    Args:
        height: height of each image in pixels.
        width: width of each image in pixels.
        batch_size: number of images.
        seed: seed of the noise.

    Returns:
        One dict per image with ``image`` (float32 [3, height, width], values 0 to 255), ``height``
        and ``width``.

    Raises:
        ValueError: a size is not positive.
    """
    if min(height, width, batch_size) < 1:
        raise ValueError(
            f"height, width and batch size must be positive, got {height}, {width}, {batch_size}"
        )
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randint(0, 256, (3, height, width), generator=generator).float(),
            "height": height,
            "width": width,
        }
        for _ in range(batch_size)
    ]


def count_flops(
    model: nn.Module, inputs: Sequence[Mapping[str, Any]], *, arithmetic: bool = True
) -> FlopReport:
    """Count the operations of one forward pass in evaluation mode.

    Args:
        model: a detector; its training mode is restored afterwards.
        inputs: detectron2's ``list[dict]``.
        arithmetic: False counts from shapes alone, with zeros as results, in a fraction of the
            time. Leave it True if the amount of work depends on an image's content, such as on the
            number of tokens that are kept.

    Raises:
        ValueError: ``inputs`` is empty.
    """
    if not inputs:
        raise ValueError("counting needs at least one image")
    counting = _Counting(model, arithmetic=arithmetic)
    with evaluating(model), torch.no_grad(), _explicit_attention(), counting.following(), counting:
        model(inputs)
    by_module = {name: 0.0 for name, _ in model.named_modules()}
    parts = dict.fromkeys(PARTS, 0.0)
    for name, macs in counting.own.items():
        parts[_part(name)] += macs
        while name:
            by_module[name] += macs
            name = name.rpartition(".")[0]
        by_module[""] += macs
    return FlopReport(
        total=by_module[""],
        by_part=parts,
        by_module=by_module,
        by_operator={name: float(macs) for name, macs in counting.by_operator.items()},
        activations={name: float(number) for name, number in counting.activations.items()},
        uncounted={name: float(times) for name, times in counting.uncounted.items()},
    )


def mean_report(
    reports: Sequence[FlopReport], weights: Sequence[float] | None = None
) -> FlopReport:
    """Return the weighted mean of several reports of one model.

    Args:
        reports: at least one report.
        weights: one for each report; they need not sum to 1. None for equal weights.

    Raises:
        ValueError: there is no report, or not one positive weight for each.
    """
    weights = [1.0] * len(reports) if weights is None else list(weights)
    if not reports or len(weights) != len(reports) or any(weight <= 0 for weight in weights):
        raise ValueError(
            f"a mean needs reports with one positive weight each, got {len(reports)} reports and "
            f"weights {weights}"
        )
    shares = [weight / sum(weights) for weight in weights]

    def mean(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
        names = dict.fromkeys(name for table in tables for name in table)
        return {
            name: sum(
                share * table.get(name, 0.0) for share, table in zip(shares, tables, strict=True)
            )
            for name in names
        }

    return FlopReport(
        total=sum(share * report.total for share, report in zip(shares, reports, strict=True)),
        by_part=mean([report.by_part for report in reports]),
        by_module=mean([report.by_module for report in reports]),
        by_operator=mean([report.by_operator for report in reports]),
        activations=mean([report.activations for report in reports]),
        uncounted=mean([report.uncounted for report in reports]),
    )


def blended_flops(model: nn.Module, *, arithmetic: bool = False) -> FlopReport:
    """Count the operations for the mean COCO val image of the published figures.

    See :data:`BLENDED_SIZES`, and :func:`count_flops` for ``arithmetic``.
    """
    reports = [
        count_flops(model, synthetic_inputs(*size), arithmetic=arithmetic)
        for _, size in BLENDED_SIZES
    ]
    return mean_report(reports, [weight for weight, _ in BLENDED_SIZES])


def pyramid_shapes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return the (height, width) in tokens of each level, finest first, of an image's pyramid.

    The four levels have strides 8 to 64 pixels, rounded up as padded convolutions do.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
    """
    return tuple((-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64))


def _part(name: str) -> str:
    if not _HEADS.isdisjoint(name.split(".")):
        return "heads"
    for prefix, part in _PART_OF_PREFIX.items():
        if name == prefix or name.startswith(f"{prefix}."):
            return part
    return "other"


@contextmanager
def _explicit_attention() -> Iterator[None]:
    """Disable the fast path of ``nn.MultiheadAttention``, a single operator that hides products."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
