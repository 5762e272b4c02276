"""The compiled operators of token merging, and when they run.

Shapes: B image, N all tokens, K tokens of the merged sequence, S windows, X tokens of the largest
window, E tokens of some windows one after the other, R windows that merge, U tokens of the coarsest
level, T neighbors, A tokens that absorb others.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokendetr.compat.torch_private import current_dispatch_mode
from tokendetr.ops import library
from tokendetr.ops.fallback import use_extension
from tokendetr.ops.kernels import call_kernel

# A library that was built from older sources lacks these operators.
_BUILT = library.library_facts().load_error is None and all(
    hasattr(torch.ops.tokendetr, name)
    for name in ("choose_windows", "match_tokens", "merged_order")
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


def choose_windows_kernel(
    score_S: Tensor,
    token_SX: Tensor,
    number: Sequence[int],
    cells: Sequence[int],
    counts: Sequence[int],
) -> Tensor:
    """Return the tokens of each class's best windows, classes of the smallest windows first.

    Args:
        score_S: float32; higher is better, NaN counts as the lowest score.
        token_SX: long, each window's tokens at the end of its row, class after class.
        number: windows of each class.
        cells: tokens of a window of each class.
        counts: windows to choose from each class, at most its number.

    Returns:
        Long [E].

    Raises:
        ValueError: a shape, dtype or number does not fit; the message names the argument.
    """
    operator = torch.ops.tokendetr.choose_windows.default
    chosen_E: Tensor = call_kernel(operator, score_S, token_SX, number, cells, counts)
    return chosen_E


def match_tokens_kernel(
    cosine_BUU: Tensor,
    order_BU: Tensor,
    valid_BU: Tensor | None,
    score_BU: Tensor | None,
    valid_counts: Sequence[int],
    counts: Sequence[int],
    neighbors: int,
    min_cosine: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rank a level's tokens by rarity, and match each unimportant one to important neighbors.

    Args:
        cosine_BUU: float32, products of the unit vectors.
        order_BU: long, the order in which equally rare tokens are chosen.
        valid_BU: bool, True for real tokens; None if all are.
        score_BU: float32 scores that replace rarity, or None.
        valid_counts: real tokens of each image.
        counts: important tokens of each image, at most its real ones.
        neighbors: most similar tokens to look at, at most U.
        min_cosine: lower bound of cosines before they are inverted.

    Returns:
        The fields of :class:`tokendetr.tokens.AffinityMatch`.

    Raises:
        ValueError: a shape, dtype or number does not fit; the message names the argument.
    """
    operator = torch.ops.tokendetr.match_tokens.default
    score, important, index, neighbor, absorbs, absorbed = call_kernel(
        operator,
        cosine_BUU,
        order_BU,
        valid_BU,
        score_BU,
        valid_counts,
        counts,
        neighbors,
        min_cosine,
    )
    return score, important, index, neighbor, absorbs, absorbed


def merged_order_kernel(
    valid_BN: Tensor,
    member_E: Tensor,
    cells: Sequence[int],
    number: Sequence[int],
    important_BU: Tensor | None,
    absorber_BA: Tensor | None,
    absorber_counts: Sequence[int],
    length: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the order of a merged sequence, and the places in it of tokens that stand for others.

    Args:
        valid_BN: bool, True for real tokens.
        member_E: long, the flat tokens of windows that merge, each window's last one standing for
            it.
        cells: tokens of a window of each size.
        number: windows of each size.
        important_BU: bool, the tokens of the coarsest (last) level that stay; None: all real ones.
        absorber_BA: long, tokens of that level that absorb others, or None.
        absorber_counts: how many of these each image has.
        length: tokens K of the longest merged sequence.

    Returns:
        The fields of :class:`tokendetr.tokens.MergedOrder`.

    Raises:
        ValueError: a shape, dtype or number does not fit; the message names the argument.
    """
    operator = torch.ops.tokendetr.merged_order.default
    index, window_slot, absorber, absorber_slot = call_kernel(
        operator,
        valid_BN,
        member_E,
        cells,
        number,
        important_BU,
        absorber_BA,
        absorber_counts,
        length,
    )
    return index, window_slot, absorber, absorber_slot
