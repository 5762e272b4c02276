"""One forward pass of an affine bypass: what moves, when, and in which form.

Usually the tokens are sorted by what happens to them, so that a map costs nothing for the tokens
that it does not move. Their numbers depend on the image. A traced program has fixed shapes: there
each map is applied to its whole level, and masks choose.

Shapes: B image, N all tokens, K kept tokens, R any rows of [B * N], C channel, L level.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokendetr.compat.torch_private import function_is_transformed
from tokendetr.encoder.bypass import AffineBypass
from tokendetr.tokens import Identity, Keep, LevelLayout, TokenMap, chosen_tokens

_KEPT, _RETURNED, _PASSED, _LEFT_OUT, _PADDING = range(5)
"""Kinds of tokens in a layer.

KEPT: updated now, and before or from the first layer on. RETURNED: updated now for the first time,
after layers that skipped it. PASSED: skipped now, updated before. LEFT_OUT: never updated so far.
PADDING.
"""


class BypassPass:
    """State of a bypass in one forward pass; this base class leaves skipped tokens unchanged.

    The encoder's memory is up to date for tokens that were updated at least once. Tokens that never
    were keep their input features in it; their maps are applied only when something reads them.
    """

    def begin_layer(self, layer: int, token_map: TokenMap, memory_BNC: Tensor) -> Tensor:
        """Take a layer's map, and bring the tokens that return up to date in the memory.

        Raises:
            ValueError: a bypass maps tokens, and the map is neither Identity nor Keep.
        """
        return memory_BNC

    def values(self, layer: int, memory_BNC: Tensor) -> Tensor:
        """Return all tokens [B, N, C], up to date, before a layer."""
        return memory_BNC

    def projected_values(
        self, layer: int, memory_BNC: Tensor, projection: nn.Linear
    ) -> Tensor | None:
        """Return a layer's value projection of :meth:`values` by folded matrices, 0 for padding.

        Returns:
            Projections [B, N, C]; None if no token is mapped.
        """
        return None

    def end_layer(self, layer: int, memory_BNC: Tensor) -> Tensor:
        """Return the memory after a layer, with tokens of kind PASSED moved on by the layer."""
        return memory_BNC

    def finish(self, memory_BNC: Tensor) -> Tensor:
        """Return the memory after the last layer, up to date for every token."""
        return memory_BNC


class _MappedPass(BypassPass, ABC):
    """Applies the maps of a bypass.

    Args:
        bypass: the maps.
        layout: geometry of the batch.
        entry_BNC: what the maps take (:meth:`AffineBypass.entry`).
    """

    def __init__(self, bypass: AffineBypass, layout: LevelLayout, entry_BNC: Tensor) -> None:
        self._bypass = bypass
        self._layout = layout
        self._updated_BN: Tensor | None = None
        self._map: TokenMap | None = None

    def begin_layer(self, layer: int, token_map: TokenMap, memory_BNC: Tensor) -> Tensor:
        if token_map is self._map:
            return memory_BNC
        if not isinstance(token_map, Identity | Keep):
            raise ValueError(
                "a bypass moves tokens that are left out; "
                f"{type(token_map).__name__} maps leave none out"
            )
        self._map = token_map
        return self._sort(layer, self._kept_tokens(token_map), memory_BNC)

    @abstractmethod
    def _sort(self, layer: int, kept_BN: Tensor, memory_BNC: Tensor) -> Tensor:
        """Begin a layer with another map; return the memory with returning tokens up to date."""

    def _kept_tokens(self, token_map: TokenMap) -> Tensor:
        anchor_BK, valid_BK = token_map.anchor_BK, token_map.valid_BK
        if anchor_BK is None:
            return torch.ones_like(self._layout.valid_BN)
        return chosen_tokens(anchor_BK, valid_BK, self._layout.num_tokens)


class _SortedPass(_MappedPass):
    """Sorts the tokens by kind and level, and applies each map to its own tokens alone."""

    def __init__(self, bypass: AffineBypass, layout: LevelLayout, entry_BNC: Tensor) -> None:
        super().__init__(bypass, layout, entry_BNC)
        self._entry_RC = entry_BNC.flatten(0, 1)
        self._level_N = layout.level_N
        self._rows: dict[int, list[Tensor]] = {}
        self._order_R: Tensor | None = None
        self._place_R: Tensor | None = None
        self._stored, self._real = 0, 0
        self._left_out: list[Tensor] = []
        self._used = False

    def _sort(self, layer: int, kept_BN: Tensor, memory_BNC: Tensor) -> Tensor:
        self._sort_tokens(kept_BN, first=layer == 0)
        if not any(len(rows) for rows in self._rows[_RETURNED]):
            return memory_BNC
        return self._write(memory_BNC, _RETURNED, layer - 1)

    def _sort_tokens(self, kept_BN: Tensor, *, first: bool) -> None:
        """Sort all rows by kind and level, with one synchronization with the device."""
        updated_BN = self._updated_BN
        if updated_BN is None or first:
            updated_BN = kept_BN
            kind_BN = torch.where(kept_BN, _KEPT, _LEFT_OUT)
        else:
            kind_BN = torch.where(
                kept_BN,
                torch.where(updated_BN, _KEPT, _RETURNED),
                torch.where(updated_BN, _PASSED, _LEFT_OUT),
            )
        # Identity maps compute padding too, but nothing reads its value.
        kind_BN = kind_BN.masked_fill(~self._layout.valid_BN, _PADDING)
        levels = self._layout.num_levels
        code_R = (kind_BN * levels + self._level_N).flatten()
        counts = torch.bincount(code_R, minlength=(_PADDING + 1) * levels).tolist()
        order_R = code_R.sort(stable=True).indices
        parts = order_R.split(counts)
        self._rows = {
            kind: list(parts[kind * levels : (kind + 1) * levels]) for kind in range(_PADDING)
        }
        self._order_R, self._place_R = order_R, None
        self._stored = sum(counts[: _LEFT_OUT * levels])
        self._real = sum(counts[: _PADDING * levels])
        left_out_RC = self._entry_RC.index_select(0, order_R[self._stored : self._real])
        self._left_out = list(left_out_RC.split(counts[_LEFT_OUT * levels : _PADDING * levels]))
        self._updated_BN = updated_BN | kept_BN

    def _places(self, order_R: Tensor) -> Tensor:
        """Return where each row stands in the order; all padding at the place after real rows."""
        if self._place_R is None:
            position_R = torch.arange(len(order_R), device=order_R.device)
            place_R = torch.empty_like(order_R).scatter_(0, order_R, position_R)
            self._place_R = place_R.clamp_max_(self._real)
        return self._place_R

    def _write(self, memory_BNC: Tensor, kind: int, layer: int) -> Tensor:
        """Return the memory with the tokens of a kind mapped to their state after a layer."""
        rows = self._rows[kind]
        inputs = (
            self._left_out
            if kind == _LEFT_OUT
            else [self._entry_RC.index_select(0, rows_R) for rows_R in rows]
        )
        moved = [self._bypass.moved(layer, level, x_RC) for level, x_RC in enumerate(inputs)]
        self._used = True
        written_RC = torch.cat(moved).to(memory_BNC.dtype)
        flat_RC = memory_BNC.flatten(0, 1).index_copy(0, torch.cat(rows), written_RC)
        return flat_RC.view_as(memory_BNC)

    def values(self, layer: int, memory_BNC: Tensor) -> Tensor:
        if layer == 0 or not self._leaves_out:
            return memory_BNC
        return self._write(memory_BNC, _LEFT_OUT, layer - 1)

    def projected_values(
        self, layer: int, memory_BNC: Tensor, projection: nn.Linear
    ) -> Tensor | None:
        if layer == 0 or not self._leaves_out:
            return None
        self._used = True
        order_R = self._order_R
        assert order_R is not None
        stored_RC = memory_BNC.flatten(0, 1).index_select(0, order_R[: self._stored])
        sorted_RC = [projection(stored_RC)]
        for level, x_RC in enumerate(self._left_out):
            if len(x_RC):
                weight_CC, bias_C = self._bypass.folded(layer - 1, level, projection)
                sorted_RC.append(F.linear(x_RC, weight_CC, bias_C))
        if self._real < len(order_R):
            sorted_RC.append(sorted_RC[0].new_zeros(1, memory_BNC.shape[2]))
        projected_RC = torch.cat(sorted_RC).index_select(0, self._places(order_R))
        return projected_RC.view_as(memory_BNC)

    def end_layer(self, layer: int, memory_BNC: Tensor) -> Tensor:
        rows = self._rows[_PASSED]
        if not any(len(rows_R) for rows_R in rows):
            return memory_BNC
        self._used = True
        steps = [
            self._bypass.step(layer, level, self._entry_RC[rows_R])
            for level, rows_R in enumerate(rows)
        ]
        moved_RC = torch.cat(steps).to(memory_BNC.dtype)
        flat_RC = memory_BNC.flatten(0, 1).index_add(0, torch.cat(rows), moved_RC)
        return flat_RC.view_as(memory_BNC)

    def finish(self, memory_BNC: Tensor) -> Tensor:
        if self._leaves_out:
            memory_BNC = self._write(memory_BNC, _LEFT_OUT, self._bypass.num_layers - 1)
        elif torch.is_grad_enabled() and not self._used:
            # DistributedDataParallel needs every parameter in every process's graph.
            first = [parameter.flatten()[:1] for parameter in self._bypass.parameters()]
            memory_BNC = memory_BNC + 0.0 * torch.cat(first).sum()
        return memory_BNC

    @property
    def _leaves_out(self) -> bool:
        return any(len(rows_R) for rows_R in self._rows[_LEFT_OUT])


class _MaskedPass(_MappedPass):
    """Applies each map to its whole level; masks choose. All shapes are those of the layout."""

    def __init__(self, bypass: AffineBypass, layout: LevelLayout, entry_BNC: Tensor) -> None:
        super().__init__(bypass, layout, entry_BNC)
        self._entry_BNC = entry_BNC
        self._passed_BN: Tensor | None = None

    @property
    def _updated_BN1(self) -> Tensor:
        assert self._updated_BN is not None
        return self._updated_BN.unsqueeze(-1)

    def _sort(self, layer: int, kept_BN: Tensor, memory_BNC: Tensor) -> Tensor:
        before_BN, self._updated_BN = self._updated_BN, kept_BN
        if before_BN is None:
            return memory_BNC
        self._updated_BN, self._passed_BN = before_BN | kept_BN, before_BN & ~kept_BN
        returned_BN1 = (kept_BN & ~before_BN).unsqueeze(-1)
        return torch.where(returned_BN1, self._moved(layer - 1).to(memory_BNC.dtype), memory_BNC)

    def _moved(self, layer: int) -> Tensor:
        return self._by_level(partial(self._bypass.moved, layer))

    def _by_level(self, function: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return a function's results for each level's number and entries, level after level."""
        levels = self._entry_BNC.split(list(self._layout.level_sizes), dim=1)
        return torch.cat([function(level, x) for level, x in enumerate(levels)], dim=1)

    def values(self, layer: int, memory_BNC: Tensor) -> Tensor:
        if layer == 0:
            return memory_BNC
        moved_BNC = self._moved(layer - 1).to(memory_BNC.dtype)
        return torch.where(self._updated_BN1, memory_BNC, moved_BNC)

    def projected_values(
        self, layer: int, memory_BNC: Tensor, projection: nn.Linear
    ) -> Tensor | None:
        if layer == 0:
            return None
        moved_BNC = self._by_level(
            lambda level, x: F.linear(x, *self._bypass.folded(layer - 1, level, projection))
        )
        projected_BNC = self._projected_updates(memory_BNC, moved_BNC, projection)
        return projected_BNC.masked_fill(self._layout.padding_BN.unsqueeze(-1), 0.0)

    def _projected_updates(
        self, memory_BNC: Tensor, moved_BNC: Tensor, projection: nn.Linear
    ) -> Tensor:
        """Return the projections with those of updated tokens in their places."""
        assert self._map is not None
        if self._passed_BN is None and isinstance(self._map, Keep):
            # One map so far: the updated tokens are the kept ones, whose number is fixed.
            kept_BKC = projection(self._map.reduce(memory_BNC))
            return self._map.restore(kept_BKC, moved_BNC.to(kept_BKC.dtype))
        stored_BNC = projection(memory_BNC)
        return torch.where(self._updated_BN1, stored_BNC, moved_BNC.to(stored_BNC.dtype))

    def end_layer(self, layer: int, memory_BNC: Tensor) -> Tensor:
        if self._passed_BN is None:
            return memory_BNC
        step_BNC = self._by_level(partial(self._bypass.step, layer)).to(memory_BNC.dtype)
        return torch.where(self._passed_BN.unsqueeze(-1), memory_BNC + step_BNC, memory_BNC)

    def finish(self, memory_BNC: Tensor) -> Tensor:
        moved_BNC = self._moved(self._bypass.num_layers - 1).to(memory_BNC.dtype)
        return torch.where(self._updated_BN1, memory_BNC, moved_BNC)


def start_bypass(
    bypass: AffineBypass | None, layout: LevelLayout, memory_BNC: Tensor
) -> BypassPass:
    """Return the state of one forward pass, in the form that fits: see the module.

    Args:
        bypass: the maps; None: skipped tokens stay unchanged.
        layout: geometry of the batch.
        memory_BNC: the encoder's input.

    Raises:
        ValueError: the pyramid has another number of levels, or levels that do not halve as a
            context needs them.
    """
    if bypass is None:
        return BypassPass()
    if layout.num_levels != bypass.num_levels:
        raise ValueError(
            f"the bypass was built for num_levels={bypass.num_levels}, "
            f"the encoder got {layout.num_levels} feature levels"
        )
    is_traced = torch.compiler.is_compiling() or layout.traced_sizes_BL2 is not None
    fixed = is_traced or function_is_transformed()
    entry_BNC = bypass.entry(layout, memory_BNC)
    return (_MaskedPass if fixed else _SortedPass)(bypass, layout, entry_BNC)
