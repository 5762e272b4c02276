"""Mix tokens: every token may contribute to several reduced ones (Token Transforming).

W is the assignment m (:class:`~tokendetr.tokens.assignment.Assignment`) with rows scaled to sum 1.
Pruning and merging are the assignments with at most one entry in each column.
Shapes: B image, N all tokens, K reduced tokens, C channel, T reduced tokens that restore one token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tokendetr.tokens.assignment import COLUMNS_AT_ONCE, Assignment, without_autocast
from tokendetr.tokens.maps.base import TokenMap, take_rows


@dataclass(frozen=True)
class Recovery:
    """The reduced tokens that restore each token.

    Attributes:
        index_BNT: long, the reduced tokens.
        weight_BNT: their weights, summing to 1; None if T is 1.
    """

    index_BNT: Tensor
    weight_BNT: Tensor | None = None

    def restore(self, y_BKC: Tensor) -> Tensor:
        """Return all tokens [B, N, C] from the reduced ones."""
        if self.weight_BNT is None:
            return take_rows(y_BKC, self.index_BNT[..., 0])
        batch, tokens, _ = self.index_BNT.shape
        share_BNK = y_BKC.new_zeros(batch, tokens, y_BKC.shape[1], dtype=torch.float32)
        share_BNK = share_BNK.scatter_add(2, self.index_BNT, self.weight_BNT.float())
        return share_BNK.to(y_BKC.dtype) @ y_BKC

    def then(self, later: "Recovery") -> "Recovery":
        """Return the recovery through two reductions, this one first.

        Raises:
            ValueError: either restores a token from several reduced ones.
        """
        if self.index_BNT.shape[2] != 1 or later.index_BNT.shape[2] != 1:
            raise ValueError("only recoveries from one reduced token each can be composed")
        return Recovery(take_rows(later.index_BNT, self.index_BNT[..., 0]))


def nearest_recovery(x_BNC: Tensor, y_BKC: Tensor, valid_BK: Tensor | None = None) -> Recovery:
    """Restore each token from the reduced token nearest to it.

    Args:
        x_BNC: the tokens as they were reduced.
        y_BKC: the reduced tokens.
        valid_BK: bool, False = padding entries of ``y_BKC``.

    Source: Token Transforming, arXiv 2506.05709, equation 9. Of equally near ones, the first.
    """
    x_BNC, y_BKC = x_BNC.detach().float(), y_BKC.detach().float()
    square_BK = y_BKC.square().sum(dim=-1)
    if valid_BK is not None:
        square_BK = square_BK.masked_fill(~valid_BK, float("inf"))
    nearest = []
    with without_autocast(x_BNC.device):
        for block_BnC in x_BNC.split(COLUMNS_AT_ONCE, dim=1):
            # |x - y|^2 without |x|^2, which is the same for all y.
            product_BnK = block_BnC @ y_BKC.transpose(1, 2)
            nearest.append((square_BK[:, None] - 2 * product_BnK).argmin(dim=2))
    return Recovery(torch.cat(nearest, dim=1)[..., None])


class Mix(TokenMap):
    """Map whose reduced tokens are weighted means of tokens; a token may go into several.

    Args:
        assignment: share of each token that goes into each reduced token.
        index_BK: long, the token whose position each reduced token has; distinct in an image.
        valid_BK: bool, False for padding entries, whose rows of W and of ``reduce`` are 0; None if
            there are none.
        size_BN: number of original tokens that each token represents; None: 1.
        weight_BN: weight of each token in the means; None: its size.
        recovery: how tokens are restored; see :meth:`with_recovery`.

    Source: Token Transforming, arXiv 2506.05709, equations 1, 6 and 8.
    Differs: with ``size_BN``, means and sizes count the original tokens that a token represents, so
    that sizes still sum to their number after repeated reductions; equation 8 as printed counts
    every token once.
    """

    def __init__(
        self,
        *,
        assignment: Assignment,
        index_BK: Tensor,
        valid_BK: Tensor | None = None,
        size_BN: Tensor | None = None,
        weight_BN: Tensor | None = None,
        recovery: Recovery | None = None,
    ) -> None:
        if index_BK.shape[1] != assignment.num_tokens:
            raise ValueError(
                f"index_BK names {index_BK.shape[1]} tokens, the assignment has "
                f"{assignment.num_tokens} rows"
            )
        self.assignment = assignment
        self.recovery = recovery
        self._index_BK, self._valid_BK = index_BK, valid_BK
        self._size_BN, self._weight_BN = size_BN, weight_BN

    @property
    def num_tokens(self) -> int:
        """Number of reduced tokens K."""
        return self.assignment.num_tokens

    @property
    def valid_BK(self) -> Tensor | None:
        """Bool [B, K], False for padding entries; None if there are none."""
        return self._valid_BK

    @property
    def anchor_BK(self) -> Tensor:
        """Long [B, K], the token whose position each reduced token has."""
        return self._index_BK

    def mix(self, x_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reduced tokens [B, K, C] and their sizes, float32 [B, K].

        The tokens have the type of ``x_BNC``.
        """
        weight_BN = self._size_BN if self._weight_BN is None else self._weight_BN
        total_BKC, mass_BK = self.assignment.gather(x_BNC, weight_BN)
        mean_BKC = total_BKC / mass_BK.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
        size_BK = mass_BK if self._weight_BN is None else self.size_BK()
        return mean_BKC.to(x_BNC.dtype), size_BK

    def reduce(self, x_BNC: Tensor) -> Tensor:
        """Return Y = W X, [B, K, C]."""
        return self.mix(x_BNC)[0]

    def restore(self, y_BKC: Tensor, base_BNC: Tensor) -> Tensor:
        """Return each token restored from reduced tokens; ``base_BNC`` is not used.

        Padding gets arbitrary values, which nothing reads.

        Raises:
            ValueError: the map has no recovery.
        """
        if self.recovery is None:
            raise ValueError("this map has no recovery: make it with_recovery(x, y)")
        return self.recovery.restore(y_BKC)

    def with_recovery(self, x_BNC: Tensor, y_BKC: Tensor) -> "Mix":
        """Return the same map, restoring each token from the reduced token nearest to it."""
        return Mix(
            assignment=self.assignment,
            index_BK=self._index_BK,
            valid_BK=self._valid_BK,
            size_BN=self._size_BN,
            weight_BN=self._weight_BN,
            recovery=nearest_recovery(x_BNC, y_BKC, self._valid_BK),
        )

    def size_BK(self) -> Tensor:
        """Return the number of original tokens in each reduced token, float32 [B, K]."""
        sizes = []
        for span in self.assignment.blocks():
            share_BKn = self.assignment.columns(span.start, span.stop)
            if self._size_BN is not None:
                share_BKn = share_BKn * self._size_BN[:, None, span].float()
            sizes.append(share_BKn.sum(dim=2))
        return torch.stack(sizes).sum(dim=0)

    def weights_BKN(self) -> Tensor:
        """Return W as a dense float32 matrix [B, K, N], for statistics."""
        weight_BN = self._size_BN if self._weight_BN is None else self._weight_BN
        share_BKN = self.assignment.columns(0, self.assignment.num_all)
        if weight_BN is not None:
            share_BKN = share_BKN * weight_BN[:, None].float()
        mass_BK1 = share_BKN.sum(dim=2, keepdim=True)
        return share_BKN / mass_BK1.clamp_min(torch.finfo(torch.float32).tiny)
