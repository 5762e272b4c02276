"""The compiled operators of token merging, and when they run.

Shapes: B image, N all tokens, K tokens of the merged sequence, C channel, S windows, X tokens of
the largest window, E tokens of the windows that merge, one window after the other, R these windows,
U tokens of the coarsest level, T neighbors, A tokens that absorb others, D tokens of all windows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokendetr.compat.torch_private import current_dispatch_mode
from tokendetr.ops import library
from tokendetr.ops.fallback import use_extension
from tokendetr.ops.kernels import call_kernel

# A library that was built from older sources lacks these operators.
_NAMES = ("token_similarity", "plan_merge", "merge_tokens")
_BUILT = library.library_facts().load_error is None and all(
    hasattr(torch.ops.tokendetr, name) for name in _NAMES
)
if _BUILT:
    from tokendetr.ops.token_merging import registration  # noqa: F401


def merges_by_kernel(x: Tensor) -> bool:
    """Return True if the compiled operators serve a call with this tensor.

    They do on CPUs, but not while operators are traced, compiled or counted: exported programs and
    counts are made of PyTorch's own.
    """
    return (
        _BUILT
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and current_dispatch_mode() is None
        and use_extension(x, "token merging")
    )


def token_similarity_kernel(
    x_BNC: Tensor, token_D: Tensor | None, sizes: Sequence[tuple[int, int]], start: int
) -> tuple[Tensor, Tensor]:
    """Return the coherence [S] of windows, and unit vectors [B, N - start, C] of the last tokens.

    Args:
        x_BNC: float32 tokens. There is no gradient.
        token_D: long, the flat tokens of the windows, one window after the other; None: no windows.
        sizes: number of windows, and tokens of each of them, for each class of windows.
        start: the first token whose unit vector is returned.

    Raises:
        ValueError: a shape, dtype or number does not fit; the message names the argument.
    """
    score_S, unit_BUC = call_kernel(
        torch.ops.tokendetr.token_similarity.default,
        x_BNC,
        x_BNC.new_empty(0, dtype=torch.long) if token_D is None else token_D,
        [number for number, _ in sizes],
        [cells for _, cells in sizes],
        start,
    )
    return score_S, unit_BUC


def plan_merge_kernel(
    valid_BN: Tensor,
    length: int,
    *,
    score_S: Tensor | None = None,
    token_SX: Tensor | None = None,
    number: Sequence[int] = (),
    cells: Sequence[int] = (),
    counts: Sequence[int] = (),
    cosine_BUU: Tensor | None = None,
    order_BU: Tensor | None = None,
    valid_BU: Tensor | None = None,
    score_BU: Tensor | None = None,
    valid_counts: Sequence[int] = (),
    important_counts: Sequence[int] = (),
    neighbors: int = 0,
    min_cosine: float = 1.0,
    absorbs: bool = False,
) -> tuple[Tensor, ...]:
    """Choose the windows that merge, match the coarsest level's tokens, and order what results.

    Args:
        valid_BN: bool, True for real tokens.
        length: tokens K of the longest merged sequence.
        score_S: float32 scores of windows, higher is better, NaN counts as the lowest; None: no
            window merges.
        token_SX: long, each window's tokens at the end of its row, class after class.
        number: windows of each class.
        cells: tokens of a window of each class.
        counts: windows to choose from each class, at most its number.
        cosine_BUU: float32, products of the unit vectors of the coarsest (last) level's tokens;
            None: all of them stay.
        order_BU: long, the order in which equally rare tokens are chosen.
        valid_BU: bool, True for that level's real tokens; None if all are.
        score_BU: float32 scores that replace rarity, or None.
        valid_counts: real tokens of that level in each image.
        important_counts: its important tokens in each image, at most its real ones.
        neighbors: most similar tokens to look at, at most U.
        min_cosine: lower bound of cosines before they are inverted.
        absorbs: let important tokens absorb others.

    Returns:
        The tokens [E] of the windows that merge, the smallest windows first; the fields of
        :class:`tokendetr.tokens.AffinityMatch`, empty without cosines; and those of
        :class:`tokendetr.tokens.MergedOrder`.

    Raises:
        ValueError: a shape, dtype or number does not fit; the message names the argument.
    """
    planned: tuple[Tensor, ...] = call_kernel(
        torch.ops.tokendetr.plan_merge.default,
        valid_BN,
        length,
        score_S,
        token_SX,
        number,
        cells,
        counts,
        cosine_BUU,
        order_BU,
        valid_BU,
        score_BU,
        valid_counts,
        important_counts,
        neighbors,
        min_cosine,
        absorbs,
    )
    return planned


def merge_tokens_kernel(
    x_BNC: Tensor,
    index_BK: Tensor,
    *,
    member_E: Tensor,
    sizes: Sequence[tuple[int, int]],
    window_slot_R: Tensor,
    neighbor_BUT: Tensor | None = None,
    absorbs_BUT: Tensor | None = None,
    absorber_A: Tensor,
    absorber_slot_A: Tensor,
    start: int = 0,
    mean: bool = True,
) -> Tensor:
    """Return a merged sequence, float32 [B, K, C]. There is no gradient.

    Args:
        x_BNC: float32 tokens.
        index_BK: long, the token that each place copies.
        member_E: long, the flat tokens of windows that merge, window by window.
        sizes: tokens of a window, and how many such windows there are, for each size.
        window_slot_R: long, the flat place of each window.
        neighbor_BUT: long, neighbors of a level's tokens, counted from its first token; None: no
            token absorbs others.
        absorbs_BUT: bool, True if that neighbor absorbs the token.
        absorber_A: long, the absorbing tokens, flat over the level.
        absorber_slot_A: long, their flat places.
        start: the level's first token.
        mean: average the tokens that become one; otherwise they are summed.

    Raises:
        ValueError: a shape, dtype or number does not fit; the message names the argument.
    """
    merged_BKC: Tensor = call_kernel(
        torch.ops.tokendetr.merge_tokens.default,
        x_BNC,
        index_BK,
        member_E,
        [cells for cells, _ in sizes],
        [number for _, number in sizes],
        window_slot_R,
        neighbor_BUT,
        absorbs_BUT,
        absorber_A,
        absorber_slot_A,
        start,
        mean,
    )
    return merged_BKC
