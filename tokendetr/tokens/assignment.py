"""Assignment matrices of :class:`Mix`: the share of each token that goes into each reduced token.

The matrix m [B, K, N] is stored in its cheapest form and read in blocks of columns (tokens), so
that nothing of size K x N exists if there are many tokens.
Shapes: B image, N all tokens, K reduced tokens, n tokens of one block, E all tokens of
the batch, C channel.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from tokendetr.tokens.maps.base import take_rows

COLUMNS_AT_ONCE = 1024
"""Columns (tokens) of m per block."""


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which products keep the precision of their factors."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()  # entering torch.autocast takes as long as a few operators
    return torch.autocast(device.type, enabled=False)


class Assignment(ABC):
    """m [B, K, N]: each token's column sums to 1, or to 0 where the token is dropped or padding."""

    num_tokens: int
    """Reduced tokens K."""
    num_all: int
    """Tokens N."""

    @abstractmethod
    def columns(self, start: int, stop: int) -> Tensor:
        """Return the columns of tokens ``start`` to ``stop`` (exclusive), float32 [B, K, n]."""

    def closest_BN(self) -> Tensor:
        """Return the reduced token that each token is most similar to, long; the first of equals.

        Raises:
            ValueError: the assignment was not made from similarities, or without this question.
        """
        raise ValueError(f"{type(self).__name__} does not know which tokens are similar")

    def blocks(self) -> Iterator[slice]:
        """Yield ranges of tokens that together are all of them."""
        for start in range(0, self.num_all, COLUMNS_AT_ONCE):
            yield slice(start, min(start + COLUMNS_AT_ONCE, self.num_all))

    def gather(self, x_BNC: Tensor, weight_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the sums over tokens of ``m * weight * x`` and of ``m * weight``.

        Args:
            x_BNC: tokens, of any floating type.
            weight_BN: weight of each token; None: 1.

        Returns:
            float32 [B, K, C] and float32 [B, K].
        """
        sums: list[tuple[Tensor, Tensor]] = []
        with without_autocast(x_BNC.device):
            for span in self.blocks():
                share_BKn = self.columns(span.start, span.stop)
                if weight_BN is not None:
                    share_BKn = share_BKn * weight_BN[:, None, span].float()
                sums.append((share_BKn @ x_BNC[:, span].float(), share_BKn.sum(dim=2)))
        total_BKC, mass_BK = sums[0]
        for part_BKC, part_BK in sums[1:]:
            total_BKC, mass_BK = total_BKC + part_BKC, mass_BK + part_BK
        return total_BKC, mass_BK


class DenseAssignment(Assignment):
    """An assignment stored as a matrix.

    Args:
        share_BKN: float32, m.
        closest_BN: long, the reduced token that each token is most similar to; None if unknown.
    """

    def __init__(self, share_BKN: Tensor, closest_BN: Tensor | None = None) -> None:
        self.share_BKN = share_BKN
        self.num_tokens, self.num_all = int(share_BKN.shape[1]), int(share_BKN.shape[2])
        self._closest_BN = closest_BN

    def closest_BN(self) -> Tensor:
        """Return what it was made with."""
        return super().closest_BN() if self._closest_BN is None else self._closest_BN

    def columns(self, start: int, stop: int) -> Tensor:
        """Return a slice of the matrix."""
        return self.share_BKN[:, :, start:stop]

    def blocks(self) -> Iterator[slice]:
        """Yield one range: the matrix is in memory anyway."""
        yield slice(0, self.num_all)


class ClusterAssignment(Assignment):
    """Every token goes entirely into one reduced token, or is dropped (pruning, merging).

    Args:
        cluster_BN: long, the reduced token of each token; -1 for dropped tokens.
        num_tokens: reduced tokens K.
    """

    def __init__(self, cluster_BN: Tensor, num_tokens: int) -> None:
        self.cluster_BN = cluster_BN
        self.num_tokens, self.num_all = num_tokens, int(cluster_BN.shape[1])

    def columns(self, start: int, stop: int) -> Tensor:
        """Return one-hot columns."""
        row_K1 = torch.arange(self.num_tokens, device=self.cluster_BN.device)[:, None]
        return (self.cluster_BN[:, None, start:stop] == row_K1).float()

    def gather(self, x_BNC: Tensor, weight_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return sums by adding rows, without any matrix."""
        batch = x_BNC.shape[0]
        weight_BN = (self.cluster_BN >= 0).float() * (1 if weight_BN is None else weight_BN.float())
        offset_B1 = torch.arange(batch, device=x_BNC.device)[:, None] * self.num_tokens
        row_E = (self.cluster_BN.clamp_min(0) + offset_B1).flatten()
        weighted_EC = (x_BNC.float() * weight_BN[..., None]).flatten(0, 1)
        total_KC = weighted_EC.new_zeros(batch * self.num_tokens, x_BNC.shape[2])
        mass_K = weight_BN.new_zeros(batch * self.num_tokens)
        total_KC = total_KC.index_add(0, row_E, weighted_EC)
        mass_K = mass_K.index_add(0, row_E, weight_BN.flatten())
        return total_KC.unflatten(0, (batch, -1)), mass_K.unflatten(0, (batch, -1))


class SimilarityAssignment(Assignment):
    """Every token is distributed over the informative tokens by gated cosine similarity.

    A token with no similarity at or above the threshold is distributed evenly.

    Args:
        x_BNC: the tokens' features; zero vectors are similar to none.
        index_BK: long, the informative tokens.
        threshold: similarities below it count as 0, in [-1, 1].
        temperature: factor of the similarities in the softmax, > 0; larger is sharper.
        valid_BN: bool, False = padding, whose columns are 0; None if there is none.
        valid_BK: bool, False = an unused entry of ``index_BK``; None if all are used.
        query_BKC: vectors that tokens are compared with; None: the informative tokens.
        similarity: "cosine"; or "euclidean", 1 - d^2 / (2 n), with d the distance and n the mean
            squared length of the sequence's tokens; equals the cosine if all are equally long.
        normalize: make each column sum to 1; False keeps the gated similarities.

    Source: Token Transforming, arXiv 2506.05709, equations 3 to 5.
    Differs: similarities and softmax are float32 for any dtype of features, since a temperature of
    150 turns an error of 0.01 in the cosine into a factor of 4.5.
    """

    def __init__(
        self,
        *,
        x_BNC: Tensor,
        index_BK: Tensor,
        threshold: float,
        temperature: float,
        valid_BN: Tensor | None = None,
        valid_BK: Tensor | None = None,
        query_BKC: Tensor | None = None,
        similarity: str = "cosine",
        normalize: bool = True,
    ) -> None:
        x_BNC = x_BNC.float()
        self._token_BNC = _scaled(x_BNC, x_BNC, valid_BN, similarity)
        if query_BKC is None:
            self._chosen_BKC = take_rows(self._token_BNC, index_BK)
        else:
            self._chosen_BKC = _scaled(query_BKC.float(), x_BNC, valid_BN, similarity)
        self._euclidean, self._normalize = similarity == "euclidean", normalize
        self._threshold, self._temperature = threshold, temperature
        self._valid_BN, self._valid_BK = valid_BN, valid_BK
        self.num_tokens, self.num_all = int(index_BK.shape[1]), int(x_BNC.shape[1])

    def columns(self, start: int, stop: int) -> Tensor:
        """Compute the columns of some tokens."""
        return self._shares(self._similarity(self._token_BNC[:, start:stop]), start, stop)

    def closest_BN(self) -> Tensor:
        """Compute similarities block by block; the threshold does not matter."""
        parts = [self._token_BNC[:, span] for span in self.blocks()]
        return torch.cat([self._closest(self._similarity(part)) for part in parts], dim=1)

    def dense(self, *, with_closest: bool) -> DenseAssignment:
        """Return the whole matrix, and the closest tokens from the same similarities."""
        alike_BKN = self._similarity(self._token_BNC)
        closest_BN = self._closest(alike_BKN) if with_closest else None
        return DenseAssignment(self._shares(alike_BKN, 0, self.num_all), closest_BN)

    def _closest(self, alike_BKn: Tensor) -> Tensor:
        alike_BKn = alike_BKn.detach()
        if self._valid_BK is not None:
            alike_BKn = alike_BKn.masked_fill(~self._valid_BK[..., None], float("-inf"))
        return alike_BKn.argmax(dim=1)

    def _shares(self, alike_BKn: Tensor, start: int, stop: int) -> Tensor:
        """Return the columns of tokens ``start`` to ``stop`` from their similarities."""
        share_BKn = torch.where(alike_BKn >= self._threshold, alike_BKn, 0.0)
        if self._normalize:
            logits_BKn = share_BKn * self._temperature
            if self._valid_BK is not None:
                # Not -inf: the softmax of an image without valid tokens would be NaN.
                logits_BKn = logits_BKn.masked_fill(~self._valid_BK[..., None], -1e30)
            share_BKn = logits_BKn.softmax(dim=1)
        if self._valid_BK is not None:
            share_BKn = share_BKn * self._valid_BK[..., None]
        if self._valid_BN is not None:
            share_BKn = share_BKn * self._valid_BN[:, None, start:stop]
        return share_BKn

    def _similarity(self, token_BnC: Tensor) -> Tensor:
        """Return the similarity of the chosen tokens and some others, [B, K, n]."""
        with without_autocast(token_BnC.device):
            product_BKn = self._chosen_BKC @ token_BnC.transpose(1, 2)
        if not self._euclidean:
            return product_BKn
        square_BK1 = self._chosen_BKC.square().sum(dim=2, keepdim=True)
        square_B1n = token_BnC.square().sum(dim=2)[:, None]
        # Rounding must not raise a similarity above that of equal tokens.
        return (1 + product_BKn - (square_BK1 + square_B1n) / 2).clamp_max(1.0)


def _scaled(x_BNC: Tensor, all_BNC: Tensor, valid_BN: Tensor | None, similarity: str) -> Tensor:
    """Return vectors scaled so that their products are similarities."""
    if similarity == "cosine":
        return F.normalize(x_BNC, dim=-1)
    square_BN = all_BNC.square().sum(dim=2)
    if valid_BN is None:
        mean_B = square_BN.mean(dim=1)
    else:
        mean_B = square_BN.masked_fill(~valid_BN, 0.0).sum(dim=1) / valid_BN.sum(dim=1).clamp_min(1)
    return x_BNC / mean_B.clamp_min(torch.finfo(torch.float32).tiny).sqrt()[:, None, None]


def assign_by_similarity(
    x_BNC: Tensor,
    index_BK: Tensor,
    *,
    threshold: float,
    temperature: float,
    valid_BN: Tensor | None = None,
    valid_BK: Tensor | None = None,
    query_BKC: Tensor | None = None,
    similarity: str = "cosine",
    normalize: bool = True,
    with_closest: bool = False,
) -> Assignment:
    """Return the gated assignment: a matrix if it is small, else computed in blocks.

    Args: those of :class:`SimilarityAssignment`, and ``with_closest``: its
        :meth:`~Assignment.closest_BN` will be asked for.
    """
    lazy = SimilarityAssignment(
        x_BNC=x_BNC,
        index_BK=index_BK,
        threshold=threshold,
        temperature=temperature,
        valid_BN=valid_BN,
        valid_BK=valid_BK,
        query_BKC=query_BKC,
        similarity=similarity,
        normalize=normalize,
    )
    if lazy.num_all > COLUMNS_AT_ONCE:
        return lazy
    return lazy.dense(with_closest=with_closest)
