"""Pack variable numbers of tokens per image into containers of one length.

Shapes: B image, N tokens of an image, C channel, P selected tokens of all images, G container, T
slots of a container, K the largest number of selected tokens of an image.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tokendetr.compat.cached_property import cached_property
from tokendetr.tokens.maps.base import Keep, TokenMap
from tokendetr.tokens.select import valid_from_counts


class Pack(TokenMap):
    """Packs selected tokens into containers of one length; the others stay unchanged (SPT).

    The selected tokens of an image are cut, in their order, into groups of ``length``. A full group
    is a container; the shorter last groups of several images share containers. A group is never
    split, and two groups of one image are never in one container, so which tokens attend to each
    other depends on the image alone.

    :meth:`reduce`, :meth:`restore` and :meth:`select` work on containers [G, T]; the properties
    that all maps have describe the same choice image by image.

    Args:
        index_P: long, the selected tokens as flat positions ``image * N + token``, image by image
            in packing order; distinct.
        counts: number of selected tokens of each image.
        num_all: tokens N of an image.
        length: slots T of a container.

    Raises:
        ValueError: the numbers do not fit each other.

    Source: SPT, arXiv 2410.23608, section 3.2 (token packing).
    Differs: the paper cuts the concatenated tokens of all images, so that an image's groups depend
    on the images before it.
    """

    def __init__(
        self, *, index_P: Tensor, counts: Sequence[int], num_all: int, length: int
    ) -> None:
        if length < 1:
            raise ValueError(f"a container needs at least 1 slot, got length={length}")
        if index_P.dim() != 1 or index_P.is_floating_point() or sum(counts) != len(index_P):
            raise ValueError(
                f"index_P must be long [{sum(counts)}] for the counts {list(counts)}, "
                f"got {index_P.dtype} {list(index_P.shape)}"
            )
        self.index_P = index_P
        self.counts = tuple(int(count) for count in counts)
        self.num_all = num_all
        self.length = length
        self.num_containers, starts, lengths = _place(self.counts, length)
        device, total = index_P.device, len(index_P)
        shift_P = torch.repeat_interleave(
            torch.tensor(starts).to(device), torch.tensor(lengths).to(device), output_size=total
        )
        self.slot_P = torch.arange(total, device=device) + shift_P

    @cached_property
    def index_GT(self) -> Tensor:
        """Long [G, T], flat position of each slot's token; padding slots repeat the first one."""
        shape = (self.num_containers, self.length)
        filler = self.index_P[:1] if len(self.index_P) else self.index_P.new_zeros(1)
        flat = filler.repeat(self.num_containers * self.length)
        return flat.index_copy(0, self.slot_P, self.index_P).view(shape)

    @cached_property
    def segment_GT(self) -> Tensor:
        """Int32 [G, T], the image of each slot's token; -1 for padding slots."""
        device = self.index_P.device
        image_P = torch.repeat_interleave(
            torch.arange(len(self.counts), dtype=torch.int32, device=device),
            torch.tensor(self.counts).to(device),
            output_size=len(self.index_P),
        )
        flat = image_P.new_full((self.num_containers * self.length,), -1)
        return flat.index_copy(0, self.slot_P, image_P).view(self.num_containers, self.length)

    @property
    def num_tokens(self) -> int:
        """Number of selected tokens K of the image with most."""
        return max(self.counts, default=0)

    @cached_property
    def _kept(self) -> Keep:
        device = self.index_P.device
        pieces = self.index_P.split(self.counts)
        keep_BN = torch.zeros(len(self.counts) * self.num_all, dtype=torch.bool, device=device)
        keep_BN[self.index_P] = True
        rows = []
        for image, piece in enumerate(pieces):
            own = piece - image * self.num_all
            start = image * self.num_all
            others = (~keep_BN[start : start + self.num_all]).nonzero().flatten()
            rows.append(torch.cat([own, others])[: self.num_tokens])
        valid = valid_from_counts(self.counts, self.num_tokens, device)
        return Keep(index_BK=torch.stack(rows), valid_BK=valid)

    @property
    def valid_BK(self) -> Tensor | None:
        """Bool [B, K], False for padding entries; None if there are none."""
        return self._kept.valid_BK

    @property
    def anchor_BK(self) -> Tensor:
        """Long [B, K], each image's selected tokens in packing order."""
        return self._kept.anchor_BK

    def reduce(self, x_BNC: Tensor) -> Tensor:
        """Return the containers [G, T, C]; padding slots repeat the first token."""
        rows = x_BNC.flatten(0, 1).index_select(0, self.index_GT.flatten())
        return rows.unflatten(0, (self.num_containers, self.length))

    def restore(self, y_BKC: Tensor, base_BNC: Tensor) -> Tensor:
        """Return ``base_BNC`` with the selected rows replaced by the slots of containers.

        ``y_BKC`` holds the containers, [G, T, C].
        """
        dtype = torch.promote_types(base_BNC.dtype, y_BKC.dtype)
        rows_PC = y_BKC.flatten(0, 1).index_select(0, self.slot_P).to(dtype)
        flat = base_BNC.flatten(0, 1).to(dtype)
        return flat.index_copy(0, self.index_P, rows_PC).view_as(base_BNC)

    def select(self, x_BN: Tensor) -> Tensor:
        """Return the attributes [G, T, ...] that tokens [B, N, ...] have."""
        return self.reduce(x_BN)


def _place(counts: Sequence[int], length: int) -> tuple[int, list[int], list[int]]:
    """Lay out the groups of all images.

    Returns:
        The number of containers (at least 1), and for each run of consecutive tokens its shift,
        slot minus position among all selected tokens, and its length.
    """
    first_full, containers = [], 0
    for count in counts:
        first_full.append(containers)
        containers += count // length
    rest_start = [0] * len(counts)
    room: list[tuple[int, int]] = []  # first free slot and free slots of each shared container
    for image in sorted(range(len(counts)), key=lambda image: -(counts[image] % length)):
        rest = counts[image] % length
        if rest == 0:
            continue
        place = next((i for i, (_, free) in enumerate(room) if free >= rest), None)
        if place is None:
            place = len(room)
            room.append(((containers + place) * length, length))
        start, free = room[place]
        rest_start[image] = start
        room[place] = (start + rest, free - rest)
    starts, lengths, token = [], [], 0
    for image, count in enumerate(counts):
        full = count // length * length
        starts += [first_full[image] * length - token, rest_start[image] - token - full]
        lengths += [full, count - full]
        token += count
    return max(containers + len(room), 1), starts, lengths


def window_order(
    grid: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    *,
    window_size: int,
    shift: int,
    device: torch.device,
) -> Tensor:
    """Return the positions of each image's tokens window by window, the padding at the end.

    Windows lie as after Swin's cyclic shift of the image's own part of the grid, padded to a
    multiple of the window: row by row, and inside a window row by row.

    Args:
        grid: (height, width) of the grid in which tokens are numbered.
        sizes: per image the (height, width) of its real part, at the upper left.
        window_size: side of a window in tokens.
        shift: cyclic shift in tokens, 0 <= shift < window_size.
        device: of the result.

    Returns:
        Long [B, N]; every row is a permutation.
    """
    # While a graph is traced, tensors hold no values and must not enter the cache.
    order_of = _image_order.__wrapped__ if torch.compiler.is_compiling() else _image_order
    orders = [order_of(grid, size, window_size, shift, device) for size in sizes]
    if len(set(sizes)) == 1:
        return orders[0].expand(len(orders), -1)
    return torch.stack(orders)


@lru_cache(maxsize=256)
def _image_order(
    grid: tuple[int, int],
    size: tuple[int, int],
    window_size: int,
    shift: int,
    device: torch.device,
) -> Tensor:
    columns_of_windows = -(-size[1] // window_size)
    shifted = [
        (torch.arange(real) - shift) % (-(-real // window_size) * window_size) for real in size
    ]
    window_HW = (shifted[0] // window_size)[:, None] * columns_of_windows + (
        shifted[1] // window_size
    )
    inside_HW = (shifted[0] % window_size)[:, None] * window_size + shifted[1] % window_size
    key = torch.full(grid, torch.iinfo(torch.long).max)
    key[: size[0], : size[1]] = window_HW * window_size**2 + inside_HW
    return key.flatten().argsort(stable=True).to(device)
