"""Fit the recovery maps of a transformed model to unlabeled images.

Each map is a ridge regression, from a token before the reduction and the change of its reduced
token, to the token that the model would have without this reduction. The model is not trained.

Shapes: B sequence, N token, C channel, R row, E = 2 C.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from token_transforming.recovery import RecoveryMaps, maps_of
from token_transforming.sequence import TransformedBlock
from token_transforming.settings import Reduction
from token_transforming.windowed_families import TransformedStage
from tokendetr.sparsification.least_squares import NormalEquations, relative_error, solve

__all__ = ["NoMapsError", "fit_recovery"]

_ALL_TOKENS = Reduction(method="pruning", keep_ratio=1.0, recovery="residual")
"""A reduction that keeps every token unchanged."""


class NoMapsError(ValueError):
    """A model has no recovery maps: it was not transformed with ``recovery="affine"``."""


@dataclass(frozen=True)
class _Place:
    """A block that reduces.

    Attributes:
        owner: the module with the plan: the block, or its Swin stage.
        block: number in the plan.
        maps: the block's.
    """

    owner: nn.Module
    block: int
    maps: RecoveryMaps

    def set(self, reduction: Reduction | None) -> None:
        """Set the block's reduction; None: no reduction."""
        owner: Any = self.owner
        plan = owner.token_plan
        if isinstance(owner, TransformedBlock):
            owner.token_plan = replace(plan, reduction=reduction)
            return
        reductions = {**plan.reductions, self.block: reduction}
        reductions = {block: other for block, other in reductions.items() if other is not None}
        owner.token_plan = replace(plan, reductions=reductions)

    @property
    def reduction(self) -> Reduction:
        """The block's reduction."""
        plan: Any = self.owner.token_plan
        found = plan.reduction if hasattr(plan, "reduction") else plan.reductions[self.block]
        assert isinstance(found, Reduction)
        return found


def fit_recovery(
    model: nn.Module,
    batches: Sequence[Any],
    held_back: Sequence[Any],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Fit all recovery maps of a model that was transformed with ``recovery="affine"``.

    Args:
        model: called with each batch; set to evaluation mode.
        batches: inputs to fit to.
        held_back: inputs to choose penalties on.
        progress: called with the number of passes done and their total.

    Returns:
        For each reducing block, the squared error of its maps on ``held_back``, relative to that of
        a residual recovery; below 1 the maps help.

    Raises:
        NoMapsError: the model has no maps.
        ValueError: there are no batches or no held-back ones.
    """
    if not batches or not held_back:
        raise ValueError("fitting needs batches to fit to, and others that are held back")
    groups = _groups(model)
    places = [place for group in groups for place in group]
    total, done = 2 * len(places) * (len(batches) + len(held_back)), 0
    model.eval()
    found: dict[int, float] = {}
    for group in groups:
        for number in reversed(range(len(group))):  # in the order of restoration
            place = group[number]
            sums = []
            for part in (batches, held_back):
                sums.append(_sums(model, place, group[number + 1 :], part))
                done += 2 * len(part)
                progress(done, total)
            maps = solve(*sums).maps
            with torch.no_grad():
                place.maps.weight.copy_(maps[0, :, :-1].transpose(-1, -2))
                place.maps.bias.copy_(maps[0, :, -1])
            found[id(place)] = relative_error(maps, sums[1])
    return [found[id(place)] for place in places]


def _groups(model: nn.Module) -> list[list[_Place]]:
    """Return the blocks with maps, in order, grouped by where their tokens are restored.

    Raises:
        NoMapsError: there are none.
    """
    sequence: list[_Place] = []
    stages: list[list[_Place]] = []
    for module in model.modules():
        if isinstance(module, TransformedBlock) and isinstance(module, nn.Module):
            maps = maps_of(module)
            if maps is not None:
                sequence.append(_Place(module, module.token_plan.index, maps))
        elif isinstance(module, TransformedStage) and isinstance(module, nn.Module):
            blocks: Any = module.blocks
            inside = [(index, maps_of(block)) for index, block in enumerate(blocks)]
            stages.append([_Place(module, index, maps) for index, maps in inside if maps])
    groups = [group for group in (sequence, *stages) if group]
    if not groups:
        raise NoMapsError(
            f"{type(model).__name__} has no maps to fit: transform it with recovery='affine', and "
            "so that its tokens are restored"
        )
    return groups


@torch.no_grad()
def _sums(
    model: nn.Module, place: _Place, later: Sequence[_Place], batches: Sequence[Any]
) -> NormalEquations:
    """Return the sums that determine the maps of one block."""
    channels = place.maps.bias.shape[1]
    sums = NormalEquations.empty(num_layers=1, num_levels=2, inputs=2 * channels, outputs=channels)
    for batch in batches:
        with _watching(place.maps) as seen:
            model(batch)
        with _watching(place.maps) as wanted, _reducing({place: _ALL_TOKENS}, later):
            model(batch)
        for (before_BNC, change_BNC, kept_BN), (start_BNC, moved_BNC, _) in zip(
            seen, wanted, strict=True
        ):
            input_RE = torch.cat([before_BNC, change_BNC], dim=-1).flatten(0, 1)
            missing_RC = (start_BNC + moved_BNC - before_BNC - change_BNC).flatten(0, 1)
            kept_R = kept_BN.flatten()
            for kind, rows_R in enumerate((kept_R, ~kept_R)):
                sums.add_rows(kind, input_RE[rows_R], [missing_RC[rows_R]])
    return sums


@contextmanager
def _watching(maps: RecoveryMaps) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Collect inputs of recovery maps: tokens before the reduction, change, mask of kept ones."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append((args[0], args[1], args[2]))

    hook = maps.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def _reducing(changed: Mapping[_Place, Reduction], off: Sequence[_Place]) -> Iterator[None]:
    """Change the reductions of some blocks and turn off others' inside the ``with`` block."""
    own = {place: place.reduction for place in (*changed, *off)}
    try:
        for place in off:
            place.set(None)
        for place, reduction in changed.items():
            place.set(reduction)
        yield
    finally:
        for place, reduction in own.items():
            place.set(reduction)
