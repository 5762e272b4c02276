"""The order of a sequence in which windows and tokens merge.

Shapes: B image, N all tokens, K tokens of the merged sequence, R windows that merge, U tokens of
the coarsest level, A tokens that absorb others. "Flat" indices count over the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokendetr.tokens.maps.base import flat_index
from tokendetr.tokens.select import partition, ragged_index
from tokendetr.tokens.window_choice import ChosenWindows


@dataclass(frozen=True)
class MergedOrder:
    """Where the tokens of a merged sequence come from.

    Attributes:
        index_BK: long, the tokens that stay, in order of position; entries beyond an image's own
            number are tokens that do not stay.
        window_slot_R: long, the flat place in the sequence of each window's last token.
        absorber_A: long, the absorbing tokens, flat over the coarsest level.
        absorber_slot_A: long, their flat places in the sequence.
    """

    index_BK: Tensor
    window_slot_R: Tensor
    absorber_A: Tensor
    absorber_slot_A: Tensor


def merged_order(
    valid_BN: Tensor,
    length: int,
    *,
    windows: ChosenWindows | None = None,
    important_BU: Tensor | None = None,
    absorber_BA: Tensor | None = None,
    absorber_counts: Sequence[int] = (),
) -> MergedOrder:
    """Order the tokens of a merged sequence by position.

    Args:
        valid_BN: bool, True for real tokens.
        length: tokens K of the longest image.
        windows: each is merged into its last token; None: none.
        important_BU: bool, the tokens of the coarsest level, the last of the sequence, that stay;
            None: all real ones.
        absorber_BA: long, tokens of that level, among the important ones, that absorb others; None:
            none do.
        absorber_counts: how many of these each image has.
    """
    tokens, keep_BN = valid_BN.shape[1], valid_BN.clone()
    members = [] if windows is None else windows.by_size()
    if members:
        assert windows is not None
        last_R = torch.cat([member_RP[:, -1] for member_RP in members])
        # 0 and 1: torch.jit.trace, by which fvcore counts operations, takes no booleans here.
        keep_BN.view(-1).index_fill_(0, windows.member_E, 0).index_fill_(0, last_R, 1)
    else:
        last_R = valid_BN.new_empty(0, dtype=torch.long)
    if important_BU is not None:
        keep_BN[:, tokens - important_BU.shape[1] :] = important_BU
    order_BN, slot_BN = partition(keep_BN)
    absorber_A = absorber_token_A = last_R[:0]
    if absorber_BA is not None:
        assert important_BU is not None
        coarsest, most = important_BU.shape[1], absorber_BA.shape[1]
        absorber_A = flat_index(absorber_BA, coarsest)
        absorber_token_A = flat_index(absorber_BA + tokens - coarsest, tokens)
        if any(count != most for count in absorber_counts):
            own_A = ragged_index(absorber_counts, most, valid_BN.device)
            absorber_A, absorber_token_A = absorber_A[own_A], absorber_token_A[own_A]
    slots = _slots(torch.cat([last_R, absorber_token_A]), slot_BN, length)
    window_slot_R, absorber_slot_A = slots.split([len(last_R), len(absorber_token_A)])
    return MergedOrder(order_BN[:, :length], window_slot_R, absorber_A, absorber_slot_A)


def _slots(token_R: Tensor, slot_BN: Tensor, length: int) -> Tensor:
    """Return the flat places of flat tokens in sequences of a length."""
    slot_R = slot_BN.flatten().index_select(0, token_R)
    if slot_BN.shape[0] > 1:
        slot_R = slot_R + token_R // slot_BN.shape[1] * length
    return slot_R
