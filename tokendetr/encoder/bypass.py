"""An affine bypass for the tokens that a sparse encoder leaves out.

A dense encoder changes every token in every layer, including those without an object, and most of
that change depends on the token's own features alone. Instead of leaving a skipped token unchanged,
the bypass replaces it by an affine map of its features at the encoder's input: one map per layer
and level, fitted by least squares without labels (:mod:`tokendetr.sparsification`) or trained with
the detector.

Nearly all of it is free: a skipped token passes through the next layer's value projection anyway,
and the projection of an affine map is an affine map, so the maps of inner layers are folded into
the projections. Only the last layer's maps are extra work, C^2 multiply-adds per skipped token.

Source: linear shortcuts between layers are known from language models (Din et al., "Jump to
Conclusions: Short-Cutting Transformers With Linear Transformations", 2023). Their use for skipped
tokens of detectors, the fit per level and the folding into the value projection are this project's.
Shapes: B image, N all tokens, R any rows of [B * N], C channel, L level.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokendetr.compat.torch_private import disable_current_modes
from tokendetr.tokens import Identity, Keep, LevelLayout, TokenMap

_KEPT, _RETURNED, _PASSED, _LEFT_OUT, _PADDING = range(5)
"""Kinds of tokens in a layer.

KEPT: updated now, and before or from the first layer on. RETURNED: updated now for the first time,
after layers that skipped it. PASSED: skipped now, updated before. LEFT_OUT: never updated so far.
PADDING.
"""


class AffineBypass(nn.Module):
    """Affine maps for the tokens that a sparsifier of :class:`~tokendetr.tokens.Keep` maps skips.

    The map of layer l and level v takes a token x of the encoder's input to
    ``x + weight[l, v] @ x + bias[l, v]``, an approximation of the token after layer l. A new bypass
    is zero, so that tokens stay unchanged as without one. A token that was updated in earlier
    layers changes by the difference of two consecutive layers' maps.

    Args:
        embed_dim: channels C.
        num_layers: layers of the encoder.
        num_levels: feature levels L.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(self, *, embed_dim: int = 256, num_layers: int = 6, num_levels: int = 4) -> None:
        super().__init__()
        if min(embed_dim, num_layers, num_levels) < 1:
            raise ValueError(
                "embed_dim, num_layers and num_levels must be positive, "
                f"got {embed_dim}, {num_layers} and {num_levels}"
            )
        self.embed_dim = embed_dim
        self.num_layers = num_layers
        self.num_levels = num_levels
        self.weight = nn.Parameter(torch.zeros(num_layers, num_levels, embed_dim, embed_dim))
        self.bias = nn.Parameter(torch.zeros(num_layers, num_levels, embed_dim))
        self._folded: dict[tuple[int, int], tuple[object, tuple[Tensor, Tensor | None]]] = {}

    @torch.no_grad()
    def init_weights(self) -> None:
        """Reset to zero, after a transformer has initialized every matrix by Xavier."""
        self.weight.zero_()
        self.bias.zero_()

    def train(self, mode: bool = True) -> "AffineBypass":
        """Set the mode and drop the folded matrices."""
        self._folded.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "AffineBypass":
        self._folded.clear()
        return super()._apply(fn, recurse)

    def moved(self, layer: int, level: int, x_RC: Tensor) -> Tensor:
        """Return the approximation, after a layer, of rows of the encoder's input."""
        return x_RC + F.linear(x_RC, self.weight[layer, level], self.bias[layer, level])

    def step(self, layer: int, level: int, x_RC: Tensor) -> Tensor:
        """Return the approximate change, in one layer, of rows of the encoder's input."""
        weight_CC, bias_C = self.weight[layer, level], self.bias[layer, level]
        if layer:
            weight_CC = weight_CC - self.weight[layer - 1, level]
            bias_C = bias_C - self.bias[layer - 1, level]
        return F.linear(x_RC, weight_CC, bias_C)

    def folded(self, layer: int, level: int, projection: nn.Linear) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of ``projection`` applied to :meth:`moved`.

        Without gradients they are computed once, in float64, and cached until a parameter changes.
        """
        parameters = (self.weight, self.bias, projection.weight, projection.bias)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            with torch.autocast(self.weight.device.type, enabled=False):
                return self._fold(layer, level, projection)
        key = tuple(_state(parameter) for parameter in parameters)
        kept = self._folded.get((layer, level))
        if kept is not None and kept[0] == key:
            return kept[1]
        # FLOP counters and fake tensors must neither see nor enter the cache of later passes.
        with disable_current_modes():
            folded = self._fold(layer, level, projection, dtype=torch.float64)
        self._folded[layer, level] = (key, folded)
        return folded

    def _fold(
        self, layer: int, level: int, projection: nn.Linear, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor | None]:
        dtype = dtype or self.weight.dtype
        weight_CC, bias_C = self.weight[layer, level].to(dtype), self.bias[layer, level].to(dtype)
        outer_CC = projection.weight.to(dtype)
        folded_CC = outer_CC + outer_CC @ weight_CC
        folded_C = outer_CC @ bias_C
        if projection.bias is not None:
            folded_C = folded_C + projection.bias.to(dtype)
        kind = projection.weight.dtype
        return folded_CC.to(kind), folded_C.to(kind)

    def start(self, layout: LevelLayout, memory_BNC: Tensor) -> "BypassPass":
        """Return the state of one forward pass.

        Args:
            layout: geometry of the batch.
            memory_BNC: the encoder's input.

        Raises:
            ValueError: the pyramid has another number of levels.
        """
        if layout.num_levels != self.num_levels:
            raise ValueError(
                f"the bypass was built for num_levels={self.num_levels}, "
                f"the encoder got {layout.num_levels} feature levels"
            )
        return BypassPass(self, layout, memory_BNC)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return (
            f"embed_dim={self.embed_dim}, num_layers={self.num_layers}, "
            f"num_levels={self.num_levels}"
        )


def _state(parameter: Tensor | None) -> tuple[Any, ...] | None:
    """Return a key that changes when a parameter is replaced or written to."""
    if parameter is None:
        return None
    version = None if parameter.is_inference() else parameter._version
    return (parameter.data_ptr(), version, parameter.dtype, parameter.device)


class BypassPass:
    """State of a bypass in one forward pass.

    The encoder's memory is up to date for tokens that were updated at least once. Tokens that never
    were keep their input features in it; their maps are applied only when something reads them.

    Args:
        bypass: the maps.
        layout: geometry of the batch.
        memory_BNC: the encoder's input.
    """

    def __init__(self, bypass: AffineBypass, layout: LevelLayout, memory_BNC: Tensor) -> None:
        self._bypass = bypass
        self._layout = layout
        self._input_RC = memory_BNC.flatten(0, 1)
        sizes_L = torch.tensor(layout.level_sizes, device=memory_BNC.device)
        levels_L = torch.arange(layout.num_levels, device=memory_BNC.device)
        self._level_N = levels_L.repeat_interleave(sizes_L, output_size=layout.num_tokens)
        self._updated_BN: Tensor | None = None
        self._map: TokenMap | None = None
        self._rows: dict[int, list[Tensor]] = {}
        self._left_out: list[Tensor] = []
        self._used = False

    def begin_layer(self, layer: int, token_map: TokenMap, memory_BNC: Tensor) -> Tensor:
        """Sort the tokens by a layer's map, and bring those that return up to date in the memory.

        Raises:
            ValueError: the map is neither Identity nor Keep.
        """
        if token_map is self._map:
            if self._rows[_RETURNED]:  # the layer before brought them up to date
                self._rows[_KEPT] += self._rows[_RETURNED]
                self._rows[_RETURNED] = []
            return memory_BNC
        if not isinstance(token_map, Identity | Keep):
            raise ValueError(
                "a bypass moves tokens that are left out; "
                f"{type(token_map).__name__} maps leave none out"
            )
        self._map = token_map
        self._sort_tokens(self._kept_tokens(token_map), first=layer == 0)
        if not any(len(rows) for rows in self._rows[_RETURNED]):
            return memory_BNC
        return self._write(memory_BNC, _RETURNED, layer - 1)

    def _kept_tokens(self, token_map: TokenMap) -> Tensor:
        anchor_BK, valid_BK = token_map.anchor_BK, token_map.valid_BK
        kept_BN = torch.ones_like(self._layout.valid_BN)
        if anchor_BK is not None:
            source_BK = torch.ones_like(anchor_BK, dtype=torch.bool)
            source_BK = source_BK if valid_BK is None else valid_BK
            kept_BN = torch.zeros_like(kept_BN).scatter(1, anchor_BK, source_BK)
        return kept_BN

    def _sort_tokens(self, kept_BN: Tensor, *, first: bool) -> None:
        """Sort all rows by kind and level, with one synchronization with the device."""
        updated_BN = self._updated_BN
        updated_BN = kept_BN if updated_BN is None or first else updated_BN
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
        parts = code_R.sort(stable=True).indices.split(counts)
        self._rows = {
            kind: list(parts[kind * levels : (kind + 1) * levels]) for kind in range(_PADDING)
        }
        self._left_out = [self._input_RC[rows_R] for rows_R in self._rows[_LEFT_OUT]]
        self._updated_BN = updated_BN | kept_BN

    def _write(self, memory_BNC: Tensor, kind: int, layer: int) -> Tensor:
        """Return the memory with the tokens of a kind mapped to their state after a layer."""
        rows = self._rows[kind]
        moved = [
            self._bypass.moved(layer, level, self._input_RC[rows_R])
            for level, rows_R in enumerate(rows)
        ]
        self._used = True
        written_RC = torch.cat(moved).to(memory_BNC.dtype)
        flat_RC = memory_BNC.flatten(0, 1).index_copy(0, torch.cat(rows), written_RC)
        return flat_RC.view_as(memory_BNC)

    def values(self, layer: int, memory_BNC: Tensor) -> Tensor:
        """Return all tokens [B, N, C], up to date, before a layer."""
        if layer == 0 or not self._leaves_out:
            return memory_BNC
        return self._write(memory_BNC, _LEFT_OUT, layer - 1)

    def projected_values(
        self, layer: int, memory_BNC: Tensor, projection: nn.Linear
    ) -> Tensor | None:
        """Return the value projection of :meth:`values` by folded matrices, 0 for padding.

        Returns:
            Projections [B, N, C]; None if no token is mapped.
        """
        if layer == 0 or not self._leaves_out:
            return None
        self._used = True
        rows_R = torch.cat([*self._rows[_KEPT], *self._rows[_RETURNED], *self._rows[_PASSED]])
        stored_RC = projection(memory_BNC.flatten(0, 1)[rows_R])
        projected_RC = stored_RC.new_zeros(self._input_RC.shape)
        projected_RC.index_copy_(0, rows_R, stored_RC)
        for level, rows_R in enumerate(self._rows[_LEFT_OUT]):
            if len(rows_R):
                weight_CC, bias_C = self._bypass.folded(layer - 1, level, projection)
                moved_RC = F.linear(self._left_out[level], weight_CC, bias_C)
                projected_RC.index_copy_(0, rows_R, moved_RC)
        return projected_RC.view_as(memory_BNC)

    def end_layer(self, layer: int, memory_BNC: Tensor) -> Tensor:
        """Return the memory after a layer, with tokens of kind PASSED moved on by the layer."""
        rows = self._rows[_PASSED]
        if not any(len(rows_R) for rows_R in rows):
            return memory_BNC
        self._used = True
        steps = [
            self._bypass.step(layer, level, self._input_RC[rows_R])
            for level, rows_R in enumerate(rows)
        ]
        moved_RC = torch.cat(steps).to(memory_BNC.dtype)
        flat_RC = memory_BNC.flatten(0, 1).index_add(0, torch.cat(rows), moved_RC)
        return flat_RC.view_as(memory_BNC)

    def finish(self, memory_BNC: Tensor) -> Tensor:
        """Return the memory after the last layer, up to date for every token."""
        if self._leaves_out:
            memory_BNC = self._write(memory_BNC, _LEFT_OUT, self._bypass.num_layers - 1)
        elif torch.is_grad_enabled() and not self._used:
            # DistributedDataParallel needs every parameter in every process's graph.
            nothing = self._bypass.weight[0, 0, 0, 0] + self._bypass.bias[0, 0, 0]
            memory_BNC = memory_BNC + 0.0 * nothing
        return memory_BNC

    @property
    def _leaves_out(self) -> bool:
        return any(len(rows_R) for rows_R in self._rows[_LEFT_OUT])
