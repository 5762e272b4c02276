"""Python registrations of token merging: fake kernels.

Imported after the library is loaded. Plans are made of integers and comparisons, and merging by the
kernel is for calls without gradients: there is no autograd, and autocast has nothing to cast.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.library.register_fake("tokendetr::token_similarity")
def _token_similarity(
    x: Tensor, token: Tensor, number: Sequence[int], cells: Sequence[int], start: int
) -> tuple[Tensor, Tensor]:
    images, tokens, channels = x.shape
    return x.new_empty(sum(number)), x.new_empty(images, tokens - start, channels)


@torch.library.register_fake("tokendetr::plan_merge")
def _plan_merge(
    valid: Tensor,
    length: int,
    score: Tensor | None,
    token: Tensor | None,
    number: Sequence[int],
    cells: Sequence[int],
    counts: Sequence[int],
    cosine: Tensor | None,
    order: Tensor | None,
    level_valid: Tensor | None,
    level_score: Tensor | None,
    level_counts: Sequence[int],
    important_counts: Sequence[int],
    neighbors: int,
    min_cosine: float,
    absorbs: bool,
) -> tuple[Tensor, ...]:
    images, level = (0, 0) if order is None else order.shape
    matched = 0 if order is None else 1
    shapes: tuple[tuple[torch.dtype, tuple[int, ...]], ...] = (
        (torch.float32, (images, level)),
        (torch.bool, (images, level)),
        (torch.long, (images, max(important_counts, default=0))),
        (torch.long, (images, level, neighbors)),
        (torch.bool, (images, level, neighbors)),
        (torch.float32, (images, level, level)),
    )
    match = (valid.new_empty(shape if matched else (0,), dtype=dtype) for dtype, shape in shapes)
    windows = 0 if score is None else sum(counts)
    absorbers = sum(important_counts) if matched and absorbs else 0
    members = sum(size * count for size, count in zip(cells, counts, strict=True))
    places = ((members if windows else 0,), (valid.shape[0], length), (windows,))
    member, index, slot = (valid.new_empty(shape, dtype=torch.long) for shape in places)
    absorber, absorber_slot = (valid.new_empty(absorbers, dtype=torch.long) for _ in range(2))
    return member, *match, index, slot, absorber, absorber_slot


@torch.library.register_fake("tokendetr::merge_tokens")
def _merge_tokens(
    x: Tensor,
    index: Tensor,
    member: Tensor,
    cells: Sequence[int],
    number: Sequence[int],
    window_slot: Tensor,
    neighbor: Tensor | None,
    absorbs: Tensor | None,
    absorber: Tensor,
    absorber_slot: Tensor,
    start: int,
    mean: bool,
) -> Tensor:
    return x.new_empty(*index.shape, x.shape[2])
