"""Python registrations of token merging: fake kernels.

Imported after the library is loaded. The operators are made of integers and comparisons: there are
no gradients, and autocast has nothing to cast.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.library.register_fake("tokendetr::choose_windows")
def _choose_windows(
    score: Tensor,
    token: Tensor,
    number: Sequence[int],
    cells: Sequence[int],
    counts: Sequence[int],
) -> Tensor:
    return token.new_empty(_tokens(cells, counts))


@torch.library.register_fake("tokendetr::match_tokens")
def _match_tokens(
    cosine: Tensor,
    order: Tensor,
    valid: Tensor | None,
    score: Tensor | None,
    valid_counts: Sequence[int],
    counts: Sequence[int],
    neighbors: int,
    min_cosine: float,
) -> tuple[Tensor, ...]:
    images, tokens = order.shape
    return (
        cosine.new_empty(images, tokens),
        cosine.new_empty(images, tokens, dtype=torch.bool),
        order.new_empty(images, max(counts, default=0)),
        order.new_empty(images, tokens, neighbors),
        cosine.new_empty(images, tokens, neighbors, dtype=torch.bool),
        cosine.new_empty(images, tokens, tokens),
    )


@torch.library.register_fake("tokendetr::merged_order")
def _merged_order(
    valid: Tensor,
    member: Tensor,
    cells: Sequence[int],
    number: Sequence[int],
    important: Tensor | None,
    absorber: Tensor | None,
    absorber_counts: Sequence[int],
    length: int,
) -> tuple[Tensor, ...]:
    absorbers = 0 if absorber is None else sum(absorber_counts)
    return (
        member.new_empty(valid.shape[0], length),
        member.new_empty(sum(number)),
        member.new_empty(absorbers),
        member.new_empty(absorbers),
    )


def _tokens(cells: Sequence[int], counts: Sequence[int]) -> int:
    return sum(each * count for each, count in zip(cells, counts, strict=True))
