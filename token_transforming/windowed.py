"""Run blocks of windowed backbones with fewer tokens in each window.

A reduction keeps K of the T tokens of every window, arranged in order of position as a smaller
window, so that the map becomes a smaller map. After the last block all tokens are restored.

Dense backbones pad windows that extend beyond the map with zeros, which take part in attention.
That padding is never mixed into a token, but its share of the attention is kept: unused slots of a
reduced window represent it, as zeros with the padding's number as their size.

Shapes: B image, H and W of a map (W before T: windows of one map), G windows of the whole batch, T
tokens of a window, K reduced ones, E all places of a batch of maps, R real ones, C channel, M head,
D head width, Y and X rows and columns of a table of relative positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from token_transforming.attention import Observed, attend_and_sum
from token_transforming.map_state import MapState, MapUndo, Windows, arranged, windows_of
from token_transforming.merging import kept_tokens
from token_transforming.recovery import Undo, maps_of
from token_transforming.reduction import Candidates, reduce_tokens, sizes_with_padding
from token_transforming.settings import Reduction
from token_transforming.window_attention import WindowLogits
from token_transforming.windowed_blocks import WindowedBlocks
from token_transforming.windowed_evaluation import evaluate_blocks
from token_transforming.windows import WindowBias, real_tokens, validity
from tokendetr.layers.windows import (
    cut,
    pad_map,
    paste,
    positions,
    shift_regions,
)
from tokendetr.tokens import take_rows


@dataclass(frozen=True)
class WindowPlan:
    """The reductions in a sequence of blocks.

    Attributes:
        reductions: by block, from 0.
        window_bias: the relative position bias of reduced windows.
    """

    reductions: Mapping[int, Reduction]
    window_bias: WindowBias


def run_blocks(
    blocks: Sequence[nn.Module],
    x_BHWC: Tensor,
    plan: WindowPlan,
    interface: WindowedBlocks,
    *,
    use_checkpoint: bool = False,
) -> Tensor:
    """Run blocks with the reductions of a plan, and restore all tokens.

    Args:
        blocks: the blocks; their own ``forward`` is not used.
        x_BHWC: the map.
        plan: the reductions.
        interface: interface to the blocks.
        use_checkpoint: recompute blocks in the backward pass to save memory.

    Returns:
        The map [B, H, W, C].
    """
    height, width = x_BHWC.shape[1:3]
    if torch.jit.is_tracing():  # sizes are tensors there
        height, width = int(height), int(width)
    state = MapState((height, width))
    for reduces, members in groupby(range(len(blocks)), key=plan.reductions.__contains__):
        indices = list(members)
        run = [blocks[index] for index in indices]
        if not reduces and all(interface.is_fast(block, x_BHWC) for block in run):
            x_BHWC = evaluate_blocks(run, x_BHWC, state, plan.window_bias, interface)
            continue
        for index, block in zip(indices, run, strict=True):
            reduction = plan.reductions.get(index)
            arguments = (block, x_BHWC, reduction, state, plan.window_bias, interface)
            if use_checkpoint and torch.is_grad_enabled():
                x_BHWC, state = checkpoint(_run_block, *arguments, use_reentrant=False)
            else:
                x_BHWC, state = _run_block(*arguments)
    for undo in reversed(state.undo):
        assert state.window is not None
        y_GTC = undo.tokens.restore(cut(x_BHWC, state.window))
        x_BHWC = paste(y_GTC, undo.window, undo.size)
        state = MapState(undo.size, undo.window)
    return x_BHWC[:, :height, :width]


def _run_block(
    block: nn.Module,
    x_BHWC: Tensor,
    reduction: Reduction | None,
    state: MapState,
    window_bias: WindowBias,
    interface: WindowedBlocks,
) -> tuple[Tensor, MapState]:
    """Run one block: attention, feed-forward network, and a reduction after one of them.

    Args:
        block: the block, whose submodules are used instead of its own ``forward``.
        x_BHWC: its input, the map as reduced so far.
        reduction: the reduction in this block; None: none.
        state: state of the map's tokens.
        window_bias: the relative position bias of reduced windows.
        interface: interface to the block.

    Returns:
        The block's output, smaller if it reduces, and the state for the next block.
    """
    windows = windows_of(block, state, window_bias, interface)
    normed_BHWC = interface.norm(block)(x_BHWC)
    added_BHWC, observed = _attend(block, normed_BHWC, reduction, state, windows, interface)
    x_BHWC = x_BHWC + block.drop_path(added_BHWC)  # type: ignore[operator]
    if reduction is not None and observed is not None and not reduction.follows_feed_forward:
        x_BHWC, state = _reduce(block, x_BHWC, reduction, state, windows, observed)
    fed_BHWC = _feed(block, x_BHWC, state, interface)
    x_BHWC = x_BHWC + block.drop_path(fed_BHWC)  # type: ignore[operator]
    if reduction is not None and observed is not None and reduction.follows_feed_forward:
        x_BHWC, state = _reduce(block, x_BHWC, reduction, state, windows, observed)
    return x_BHWC, state


def _feed(block: nn.Module, x_BHWC: Tensor, state: MapState, interface: WindowedBlocks) -> Tensor:
    """Return the feed-forward network's output [B, H, W, C], computed for real tokens alone."""
    if state.window is None or state.valid_GT is None or state.real is None:
        return interface.feed(block, x_BHWC)
    valid_E = paste(state.valid_GT[..., None], state.window, state.size).flatten()
    # Their number is known as an integer, so sorting, unlike nonzero(), does not wait for a GPU.
    batch_size = state.valid_GT.shape[0] // len(state.real)
    real_R = (~valid_E).byte().sort(stable=True).indices[: batch_size * sum(state.real)]
    x_EC = x_BHWC.flatten(0, 2)
    fed_RC = interface.feed(block, x_EC[real_R])
    fed_EC = fed_RC.new_zeros(x_EC.shape).index_copy(0, real_R, fed_RC)
    return fed_EC.view_as(x_BHWC)


def _attend(
    block: nn.Module,
    normed_BHWC: Tensor,
    reduction: Reduction | None,
    state: MapState,
    windows: Windows,
    interface: WindowedBlocks,
) -> tuple[Tensor, Observed | None]:
    """Attend within windows.

    Returns:
        The result as a map, and the attention's statistics if the block reduces.
    """
    height, width = normed_BHWC.shape[1:3]
    if state.window is not None and state.valid_GT is not None:
        valid_BHW1 = paste(state.valid_GT[..., None], state.window, state.size)
        normed_BHWC = normed_BHWC.masked_fill(~valid_BHW1, 0.0)
    x_BHWC = pad_map(normed_BHWC, windows.window)
    is_shifted = windows.shift != (0, 0)
    if is_shifted:
        x_BHWC = torch.roll(x_BHWC, (-windows.shift[0], -windows.shift[1]), (1, 2))
    query, key, value = interface.heads(block, cut(x_BHWC, windows.window))
    logits = _logits(block, state, windows, interface, query.shape[0])
    scale, dropout = interface.scale(block), interface.dropout(block)
    observed = None
    if reduction is None:
        out_GMTD = logits.attend(query, key, value, scale, dropout)
    else:
        valid_GT = _valid(state, windows, query.shape[0], query.device)
        out_GMTD, observed = attend_and_sum(
            query,
            key,
            value,
            scale=scale,
            bias=logits.bias(),
            dropout=dropout,
            valid_BN=valid_GT,
        )
    out_GTC = interface.project(block, out_GMTD.transpose(1, 2).flatten(2))
    out_BHWC = paste(out_GTC, windows.window, windows.size)
    if is_shifted:
        out_BHWC = torch.roll(out_BHWC, windows.shift, (1, 2))
    return out_BHWC[:, :height, :width], observed


def _logits(
    block: nn.Module, state: MapState, windows: Windows, interface: WindowedBlocks, count: int
) -> WindowLogits:
    """Return the biases of the logits of ``count`` windows, those of all images."""
    table_MYX = interface.bias_table(block)
    region_GT = size_GT = None
    if windows.shift != (0, 0):
        region_WT = shift_regions(windows.size, windows.window, windows.shift, table_MYX.device)
        region_GT = region_WT.repeat(count // len(region_WT), 1)
    if state.size_GT is not None:
        size_GT = arranged(state.size_GT[..., None], state, windows)[..., 0]
    return WindowLogits(table_MYX, windows.window, windows.position_GT2, region_GT, size_GT)


def _valid(state: MapState, windows: Windows, count: int, device: torch.device) -> Tensor | None:
    """Return a mask [G, T] of the real tokens of unshifted windows; None if all are."""
    if state.window is not None:
        return state.valid_GT
    valid_WT = validity(state.size, windows.window, device)
    return None if valid_WT is None else valid_WT.repeat(count // len(valid_WT), 1)


def _reduce(
    block: nn.Module,
    x_BHWC: Tensor,
    reduction: Reduction,
    state: MapState,
    windows: Windows,
    observed: Observed,
) -> tuple[Tensor, MapState]:
    """Reduce the tokens of every window.

    Args:
        block: the block, which has the maps of an affine recovery.
        x_BHWC: the map.
        reduction: the method and its options.
        state: state of the map's tokens.
        windows: those of the block's attention.
        observed: statistics of the attention.

    Returns:
        The smaller map, and its state.
    """
    window, count = windows.window, observed.key_BND.shape[0]
    kept_grid = reduction.kept_grid(*window)
    kept = kept_grid[0] * kept_grid[1]
    valid_GT = _valid(state, windows, count, x_BHWC.device)
    real = state.real if state.real is not None else real_tokens(state.size, window)
    kept_real = kept_tokens(real, window[0] * window[1], kept, reduction.method)
    position_GT2 = state.position_GT2
    if position_GT2 is None:
        position_WT2 = positions(state.size, window, x_BHWC.device)
        position_GT2 = position_WT2.repeat(count // len(position_WT2), 1, 1)
    x_GTC = cut(pad_map(x_BHWC, window), window)
    reduced = reduce_tokens(
        Candidates(
            x_BNC=x_GTC,
            received_BN=observed.received_BN,
            class_BN=None,
            key_BND=observed.key_BND,
            kept=kept,
            grid=window,
            kept_grid=kept_grid,
            size_BN=state.size_GT,
            valid_BN=valid_GT,
            kept_B=None
            if valid_GT is None
            else torch.tensor(kept_real, device=x_BHWC.device).repeat(count // len(real)),
        ),
        reduction,
        recover=True,
    )
    undo = Undo.of(reduced.token_map, x_GTC, reduced.x_BKC, reduction, maps_of(block))
    size = (
        windows.size[0] // window[0] * kept_grid[0],
        windows.size[1] // window[1] * kept_grid[1],
    )
    return paste(reduced.x_BKC, kept_grid, size), MapState(
        size=size,
        window=kept_grid,
        size_GT=sizes_with_padding(reduced, state.size_GT, valid_GT) if reduction.scales else None,
        valid_GT=reduced.valid_BK,
        position_GT2=take_rows(position_GT2, reduced.token_map.anchor_BK),
        real=None if reduction.lays_out_grid else kept_real,
        undo=(*state.undo, MapUndo(undo, window, windows.size)),
    )
