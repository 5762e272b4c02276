"""Transformed blocks of vision transformers whose tokens are one sequence.

A family of blocks is described by the names of its submodules; all compute
x + attention(norm(x)), [reduce the tokens], x + mlp(norm(x)).

Shapes: B image, N token, C channel, M head, D head width.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, cat, nn

from token_transforming.attention import Observed, attend, attend_and_sum, size_bias
from token_transforming.block_states import (
    BlockStates,
    TokenState,
    all_outputs_read,
    end_pass,
    states_for_block,
)
from token_transforming.classes import Transformed, original_class
from token_transforming.map_positions import grid_positions, map_bias
from token_transforming.recovery import Undo, maps_of
from token_transforming.reduction import Candidates, reduce_tokens
from token_transforming.settings import Reduction
from tokendetr.encoder.forward_context import current_pass
from tokendetr.tokens import take_rows

Output = Literal["reduced", "view", "restored"]


@dataclass(frozen=True)
class BlockNames:
    """Dotted names of a block's submodules and attributes.

    Attributes:
        norm: norm before the attention.
        query, key, value: projections; ``key`` and ``value`` are None if ``query`` projects to all
            three.
        query_norm, key_norm: norms of queries and keys, or None.
        heads: attribute with the number of heads M; None if ``head_width`` is given.
        head_width: attribute with the width D; None if ``heads`` is given.
        scale: attribute with the factor of the logits.
        dropout: attribute with the probability of dropping an attention weight (or a
            ``nn.Dropout``); None: no dropout.
        after: submodules between the attention and its residual, in order.
        feed: submodules between that and the second residual, in order.
    """

    norm: str
    query: str
    key: str | None
    value: str | None
    head_width: str | None
    scale: str
    dropout: str | None
    after: tuple[str, ...]
    feed: tuple[str, ...]
    heads: str | None = None
    query_norm: str | None = None
    key_norm: str | None = None


@dataclass(frozen=True)
class BlockPlan:
    """Task of one block of a transformed model.

    Attributes:
        index: number of the block, from 0.
        last: True for the last block.
        names: names of the block's submodules.
        prefix: number of class and register tokens in front, which are never reduced.
        reduction: the reduction in this block; None: none.
        recover: reductions must have a recovery.
        output: "reduced" tokens; a "view" with all tokens, while the next block continues with the
            reduced ones; or "restored" tokens, with which the next block continues.
    """

    index: int
    last: bool
    names: BlockNames
    prefix: int
    reduction: Reduction | None
    recover: bool
    output: Output


def part(module: nn.Module, name: str) -> Any:
    """Return the attribute of a dotted name."""
    found: Any = module
    for step in name.split("."):
        found = getattr(found, step)
    return found


def run_block(
    block: nn.Module, x_BNC: Tensor, plan: BlockPlan, state: TokenState
) -> tuple[Tensor, TokenState]:
    """Run one block.

    Args:
        block: the block, whose submodules are used instead of its own ``forward``.
        x_BNC: its input, class and register tokens first.
        plan: its task.
        state: state of the tokens.

    Returns:
        The block's output, and the state for the next block.
    """
    if state.x_BNC is not None:
        x_BNC, state = state.x_BNC, replace(state, x_BNC=None)
    reduction = plan.reduction
    x_BNC, observed = _attention(block, x_BNC, plan, state)
    if reduction is not None and observed is not None and not reduction.follows_feed_forward:
        x_BNC, state = _reduce(block, x_BNC, observed, plan, reduction, state)
    x_BNC = x_BNC + _through(block, plan.names.feed, x_BNC)
    if reduction is not None and observed is not None and reduction.follows_feed_forward:
        x_BNC, state = _reduce(block, x_BNC, observed, plan, reduction, state)
    if plan.output == "restored":
        return state.restore(x_BNC, plan.prefix), TokenState()
    if plan.output == "view" and state.undo:
        return state.restore(x_BNC, plan.prefix, view=True), replace(state, x_BNC=x_BNC)
    return x_BNC, state


def _attention(
    block: nn.Module, x_BNC: Tensor, plan: BlockPlan, state: TokenState
) -> tuple[Tensor, Observed | None]:
    """Return the tokens after the attention, and its statistics if the block reduces."""
    query, key, value = _heads(block, x_BNC, plan.names)
    settings: dict[str, Any] = {
        "scale": part(block, plan.names.scale),
        "bias": _bias(block, query, plan, state),
        "dropout": _dropout(block, plan.names),
    }
    observed = None
    if plan.reduction is None:
        out_BMND = attend(query, key, value, **settings)
    else:
        out_BMND, observed = attend_and_sum(query, key, value, **settings)
    added_BNC = _through(block, plan.names.after, out_BMND.transpose(1, 2).flatten(2))
    return x_BNC + added_BNC, observed


def _bias(block: nn.Module, query: Tensor, plan: BlockPlan, state: TokenState) -> Tensor | None:
    """Return the bias of the logits: log sizes, and position bias on maps."""
    bias = size_bias(state.size_BN, None, first=plan.prefix)
    if state.grid is None:
        return bias
    place_bias = map_bias(block, query, _positions(state, query.device), state.grid)
    if bias is None or place_bias is None:
        return place_bias if bias is None else bias
    return bias + place_bias


def _positions(state: TokenState, device: torch.device) -> Tensor:
    """Return row and column of the tokens on the map, long [B or 1, N, 2]."""
    if state.position_BN2 is not None:
        return state.position_BN2
    assert state.grid is not None
    return grid_positions(state.grid, device)


def _heads(block: nn.Module, x_BNC: Tensor, names: BlockNames) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, each [B, M, N, D]."""
    normed_BNC = part(block, names.norm)(x_BNC)
    if names.heads is not None:
        width = normed_BNC.shape[-1] // part(block, names.heads)
    else:
        width = part(block, str(names.head_width))
    if names.key is None or names.value is None:
        joint = part(block, names.query)(normed_BNC).unflatten(-1, (3, -1, width))
        query, key, value = joint.permute(2, 0, 3, 1, 4).unbind(0)
    else:
        query, key, value = (
            part(block, name)(normed_BNC).unflatten(-1, (-1, width)).transpose(1, 2)
            for name in (names.query, names.key, names.value)
        )
    if names.query_norm is not None and names.key_norm is not None:
        query = part(block, names.query_norm)(query)
        key = part(block, names.key_norm)(key)
    return query, key, value


def _dropout(block: nn.Module, names: BlockNames) -> float:
    if names.dropout is None or not block.training:
        return 0.0
    found = part(block, names.dropout)
    return float(found.p if isinstance(found, nn.Dropout) else found)


def _through(block: nn.Module, names: tuple[str, ...], x_BNC: Tensor) -> Tensor:
    for name in names:
        x_BNC = part(block, name)(x_BNC)
    return x_BNC


def _reduce(
    block: nn.Module,
    x_BNC: Tensor,
    observed: Observed,
    plan: BlockPlan,
    reduction: Reduction,
    state: TokenState,
) -> tuple[Tensor, TokenState]:
    """Reduce all tokens after the class and register tokens."""
    prefix = plan.prefix
    patches_BNC = x_BNC[:, prefix:]
    tokens = int(patches_BNC.shape[1])
    kept_grid = None
    kept = reduction.kept(tokens)
    grid = None if state.undo else state.grid or _square(tokens)
    if grid is not None and reduction.lays_out_grid:
        kept_grid = reduction.kept_grid(*grid)
        kept = kept_grid[0] * kept_grid[1]
    reduced = reduce_tokens(
        Candidates(
            x_BNC=patches_BNC,
            received_BN=observed.received_BN[:, prefix:],
            class_BN=observed.class_BN[:, prefix:] if prefix else None,
            key_BND=observed.key_BND[:, prefix:],
            kept=kept,
            grid=grid,
            kept_grid=kept_grid,
            size_BN=state.size_BN,
        ),
        reduction,
        recover=plan.recover,
    )
    if not torch.compiler.is_compiling():  # context variables would break the graph
        current_pass().recorder.record_reduction(plan.index, reduced.token_map, grid)
    if plan.recover:
        undo = Undo.of(reduced.token_map, patches_BNC, reduced.x_BKC, reduction, maps_of(block))
        state = replace(state, undo=(*state.undo, undo))
    if state.grid is not None:
        place_BN2 = _positions(state, x_BNC.device).expand(x_BNC.shape[0], -1, -1)
        kept_BK2 = take_rows(place_BN2, reduced.token_map.anchor_BK)
        state = replace(state, position_BN2=kept_BK2)
    size_BK = reduced.size_BK if reduction.scales else None
    x_BNC = cat([x_BNC[:, :prefix], reduced.x_BKC], dim=1)
    return x_BNC, replace(state, size_BN=size_BK)


def _square(tokens: int) -> tuple[int, int] | None:
    """Return the grid of tokens of a square image; None if there is none."""
    side = round(tokens**0.5)
    return (side, side) if side * side == tokens else None


class TransformedBlock(Transformed):
    """Mixin of a block's class while its model is transformed; ``token_plan`` is its task."""

    token_plan: BlockPlan

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the block with its pass's states bound, so that a recomputation finds the same."""
        states = states_for_block(self.token_plan.index)
        return super().__call__(*args, block_states=states, **kwargs)  # type: ignore[misc]

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the block on tokens [B, N, C].

        Raises:
            ValueError: an attention mask hides a token; reduced tokens have no entry in it.
        """
        states: BlockStates = kwargs.pop("block_states")
        plan = self.token_plan
        if states.views:
            plan = replace(plan, recover=True, output="restored" if plan.last else "view")
        for value in (*args, *(value for name, value in kwargs.items() if "mask" in name)):
            if isinstance(value, Tensor):
                self._refuse_mask(value)
        entering = states.entering
        x_BNC, entering[plan.index + 1] = self._run(hidden_states, plan, entering[plan.index])
        if plan.last:
            end_pass()
        return x_BNC

    def _refuse_mask(self, mask: Tensor) -> None:
        """Raise ValueError unless a mask (bool or additive) lets every token attend to all."""
        message = (
            f"{original_class(type(self)).__name__} is transformed and cannot take an attention "
            "mask; restore(model) first"
        )
        hides_none = mask.all() if mask.dtype == torch.bool else (mask == 0).all()
        if torch.compiler.is_compiling():
            # transformers passes a mask of all tokens if it cannot read its input's values.
            torch._assert_async(hides_none, message)
        elif not hides_none:
            raise ValueError(message)

    def _run(self, x_BNC: Tensor, plan: BlockPlan, state: TokenState) -> tuple[Tensor, TokenState]:
        assert isinstance(self, nn.Module)
        return run_block(self, x_BNC, plan, state)


class TransformedMapBlock(TransformedBlock):
    """The mixin of blocks that pass on maps [B, H, W, C]; reduced tokens are [B, K, 1, C].

    As long as there are all tokens, the block's own ``forward`` runs, with its windows.
    """

    def _run(self, x_BHWC: Tensor, plan: BlockPlan, state: TokenState) -> tuple[Tensor, TokenState]:
        if plan.reduction is None and not state.undo:
            original: Any = original_class(type(self))
            return original.forward(self, x_BHWC), state
        grid = state.grid or (x_BHWC.shape[1], x_BHWC.shape[2])
        x_BNC, state = super()._run(x_BHWC.flatten(1, 2), plan, replace(state, grid=grid))
        return x_BNC.unsqueeze(2) if plan.output == "reduced" else x_BNC.unflatten(1, grid), state


class TransformedReader(Transformed):
    """Mixin of a transformed timm model's class: its intermediate outputs have all tokens."""

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's intermediate outputs, each with all tokens."""
        with all_outputs_read():
            return super().forward_intermediates(*args, **kwargs)  # type: ignore[misc]
