"""What one forward pass of a detector costs, counted as the papers count it.

The figures of detection papers come from fvcore: a multiply-add is one operation; products,
convolutions, normalisations, interpolations and bilinear samples count, element-wise work is free.
The same rules are applied here to the operators as they are dispatched, so nothing has to be
traceable and nothing needs to be computed: shapes are enough. Deformable attention is counted as
fvcore counts the ``grid_sample`` form, whether or not the extension is built.

    report = count_flops(model, synthetic_inputs(800, 1066), arithmetic=False)
    report.total, report.by_part["encoder"]

:func:`flop_handles` gives fvcore's own analyses the rules for our operators.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from tokendetr.analysis.flop_rules import RULES, flop_handles
from tokendetr.compat.torch_private import TorchDispatchMode, tree_map_only

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
"""Parts of a detector, in the order of its forward pass; "heads" are all class and box heads, those
that score proposals included; "other" is what belongs to no part, such as the projection of
proposals."""

BLENDED_SIZES: tuple[tuple[float, tuple[int, int]], ...] = (
    (0.225, (800, 1066)),
    (0.775, (850, 1040)),
)
"""(weight, (height, width)): two sizes that stand for the first 100 images of COCO val, on which
the published figures of DINO and its relatives are means."""

_PART_OF_PREFIX = {
    "backbone": "backbone",
    "neck": "neck",
    "transformer.encoder": "encoder",
    "transformer.decoder": "decoder",
}
_HEADS = frozenset({"class_embed", "bbox_embed"})
_ACTIVE = frozenset({"conv", "matmul"})
"""What fvcore counts as activations: the outputs of these."""


@dataclass(frozen=True)
class FlopReport:
    """Operations of one forward pass; a multiply-add is one.

    Attributes:
        total: of the whole model.
        by_part: of each of :data:`PARTS`; they sum to the total.
        by_module: of each module with the modules inside it, by dotted name; a module that several
            names share has the first one.
        by_operator: of each kind of operator.
        activations: numbers that convolutions and products put out, by kind of operator.
        uncounted: how often operators ran that no rule knows; their work is missing in the total.
    """

    total: float
    by_part: Mapping[str, float]
    by_module: Mapping[str, float]
    by_operator: Mapping[str, float]
    activations: Mapping[str, float]
    uncounted: Mapping[str, float] = field(default_factory=dict)


class _Counting(TorchDispatchMode):
    """Counts what is dispatched inside it, by the module that runs.

    Args:
        model: whose modules are told apart.
        arithmetic: whether counted operators are computed; otherwise they return zeros.
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
        """Notice which module runs, inside the ``with`` block."""
        hooks = []
        for module, name in self._names.items():
            hooks.append(module.register_forward_pre_hook(self._entering(name)))
            hooks.append(module.register_forward_hook(self._leaving, always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._running.append(name)

        return enter

    def _leaving(self, *_: Any) -> None:
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
    """Return zeros of the shapes and types that an operator's results have."""
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    shapes = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (tuple(args), dict(kwargs)))
    results = func(*shapes[0], **shapes[1])
    return tree_map_only(Tensor, lambda tensor: torch.zeros_like(tensor, device=device), results)


def synthetic_inputs(
    height: int, width: int, *, batch_size: int = 1, seed: int = 0
) -> list[dict[str, Any]]:
    """Return detectron2 inputs of seeded noise.

    Args:
        height: of each image, in pixels.
        width: likewise.
        batch_size: number of images.
        seed: of the noise.

    Returns:
        One dict per image with ``image`` (float32 [3, height, width] of values 0..255), ``height``
        and ``width``.

    Raises:
        ValueError: where a size is not positive.
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
        arithmetic: False counts from shapes alone: whatever counts is replaced by zeros, which
            takes a fraction of the time. Only where content decides how much is done (how many
            tokens of an image are kept, say) do images and weights matter; then leave it True.

    Raises:
        ValueError: where ``inputs`` is empty.
    """
    if not inputs:
        raise ValueError("counting needs at least one image")
    counting = _Counting(model, arithmetic=arithmetic)
    with _evaluating(model), torch.no_grad(), _explicit_attention(), counting.following(), counting:
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
        reports: at least one.
        weights: one for each report; they need not sum to 1. Equal where None.

    Raises:
        ValueError: where there is no report, or not one positive weight for each.
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


def pyramid_shapes(
    height: int, width: int, *, num_levels: int = 4, finest_stride: int = 8
) -> tuple[tuple[int, int], ...]:
    """Return the (height, width) in tokens of each level, finest first, of an image's pyramid.

    Every level halves the one before; what does not divide is rounded up, as padded convolutions
    do.

    Args:
        height: of the image, in pixels.
        width: likewise.
        num_levels: levels.
        finest_stride: pixels per token of the finest level, a power of two.
    """
    strides = [finest_stride * 2**level for level in range(num_levels)]
    return tuple((-(-height // stride), -(-width // stride)) for stride in strides)


def _part(name: str) -> str:
    if not _HEADS.isdisjoint(name.split(".")):
        return "heads"
    for prefix, part in _PART_OF_PREFIX.items():
        if name == prefix or name.startswith(f"{prefix}."):
            return part
    return "other"


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _explicit_attention() -> Iterator[None]:
    """Keep ``nn.MultiheadAttention`` from its fast path, one node that hides its products."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
