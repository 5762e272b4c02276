"""Maps that reduce a token sequence before a layer and restore it afterwards.

A map is the sparse matrix W of Y = W X (Token Transforming, arXiv 2506.05709, section 3): pruning
has one-hot rows, merging rows that average, and their rows sum to 1. Shapes: B image, N all tokens,
K reduced tokens, C channel.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


def flat_index(index_BK: Tensor, tokens: int) -> Tensor:
    """Return where rows ``index_BK`` of tensors [B, N, ...] stand in [B * N, ...], long [B * K]."""
    batch = index_BK.shape[0]
    if batch == 1:
        return index_BK[0]
    offset_B1 = torch.arange(batch, device=index_BK.device)[:, None] * tokens
    return (index_BK + offset_B1).flatten()


def take_rows(x_BN: Tensor, index_BK: Tensor) -> Tensor:
    """Return ``x_BN[b, index_BK[b, k]]`` for tensors [B, N, ...]: whole rows are copied."""
    rows = x_BN.flatten(0, 1).index_select(0, flat_index(index_BK, x_BN.shape[1]))
    return rows.view(*index_BK.shape, *x_BN.shape[2:])


def put_rows(base_BNC: Tensor, index_BK: Tensor, rows_BKC: Tensor, *, onto: bool = False) -> Tensor:
    """Return a copy of ``base_BNC`` with rows ``index_BK`` (distinct in an image) replaced.

    With ``onto``, the base itself may be changed and returned.
    """
    flat, rows = base_BNC.flatten(0, 1), rows_BKC.flatten(0, 1)
    if flat.dtype != rows.dtype:
        dtype = torch.promote_types(flat.dtype, rows.dtype)
        flat, rows = flat.to(dtype), rows.to(dtype)
    put = flat.index_copy_ if onto else flat.index_copy
    return put(0, flat_index(index_BK, base_BNC.shape[1]), rows).view_as(base_BNC)


class TokenMap(ABC):
    """A reduction of N tokens to K, and its inverse.

    The encoder runs a layer on ``reduce(memory)`` and continues with ``restore(result, memory)``.
    """

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Number of reduced tokens K, the padding entries of a batch included."""

    @property
    @abstractmethod
    def valid_BK(self) -> Tensor | None:
        """Bool [B, K], False for reduced tokens that are padding; None if there are none."""

    @property
    @abstractmethod
    def anchor_BK(self) -> Tensor | None:
        """Long [B, K], the token whose position each reduced token has; None: all, in order."""

    @abstractmethod
    def reduce(self, x_BNC: Tensor) -> Tensor:
        """Return Y = W X, [B, K, C]."""

    @abstractmethod
    def restore(self, y_BKC: Tensor, base_BNC: Tensor) -> Tensor:
        """Return [B, N, C]: results at the tokens they belong to, ``base_BNC`` elsewhere."""

    def restore_onto(self, y_BKC: Tensor, base_BNC: Tensor) -> Tensor:
        """Return the same as :meth:`restore`; may overwrite ``base_BNC``, which saves a copy."""
        return self.restore(y_BKC, base_BNC)

    def select(self, x_BN: Tensor) -> Tensor:
        """Return the attributes [B, K, ...] of reduced tokens, given those of all tokens.

        Used for positions and reference points: a reduced token attends from its anchor's place.
        """
        anchor_BK = self.anchor_BK
        return x_BN if anchor_BK is None else take_rows(x_BN, anchor_BK)


class Identity(TokenMap):
    """All tokens, in order: the dense encoder.

    Args:
        num_tokens: number of tokens N.
        valid_BN: bool [B, N], True for real tokens; None if all are. Padding is computed too, as in
            upstream's dense encoders, but nothing reads it.
    """

    def __init__(self, *, num_tokens: int, valid_BN: Tensor | None = None) -> None:
        self._num_tokens = num_tokens
        self._valid_BN = valid_BN

    @property
    def num_tokens(self) -> int:
        """Number of tokens N."""
        return self._num_tokens

    @property
    def valid_BK(self) -> Tensor | None:
        """Bool [B, N], True for real tokens; None if all are."""
        return self._valid_BN

    @property
    def anchor_BK(self) -> None:
        """None: every token keeps its position."""
        return None

    def reduce(self, x_BNC: Tensor) -> Tensor:
        """Return the tokens themselves."""
        return x_BNC

    def restore(self, y_BKC: Tensor, base_BNC: Tensor) -> Tensor:
        """Return the results themselves."""
        return y_BKC


class AnchoredMap(TokenMap):
    """Base of maps whose reduced tokens each have one token's position.

    Args:
        index_BK: long, the indices of these tokens.
        valid_BK: bool, False for the padding entries of a batch; None if there are none.
    """

    def __init__(self, index_BK: Tensor, valid_BK: Tensor | None) -> None:
        self._index_BK = index_BK
        self._valid_BK = valid_BK

    @property
    def num_tokens(self) -> int:
        """Number of reduced tokens K of the image with most."""
        return int(self._index_BK.shape[1])

    @property
    def valid_BK(self) -> Tensor | None:
        """Bool [B, K], False for padding entries; None if there are none."""
        return self._valid_BK

    @property
    def anchor_BK(self) -> Tensor:
        """Long [B, K], the token whose position each reduced token has."""
        return self._index_BK

    def restore(self, y_BKC: Tensor, base_BNC: Tensor) -> Tensor:
        """Return ``base_BNC`` with the anchors' rows replaced."""
        return self._put_anchors(y_BKC, base_BNC, onto=False)

    def _put_anchors(self, y_BKC: Tensor, base_BNC: Tensor, *, onto: bool) -> Tensor:
        if self._valid_BK is not None:
            own_BKC = take_rows(base_BNC, self._index_BK)
            y_BKC = torch.where(self._valid_BK[..., None], y_BKC, own_BKC)
        return put_rows(base_BNC, self._index_BK, y_BKC, onto=onto)


class Keep(AnchoredMap):
    """Keeps some tokens; the others pass through unchanged (Sparse DETR, Focus-DETR).

    Args:
        index_BK: long, the kept tokens' indices; an image's indices are distinct, its padding
            entries included.
        valid_BK: bool, False for the padding entries of images that keep fewer tokens than the
            batch's largest count; they are computed and discarded. None if there are none.
    """

    def __init__(self, *, index_BK: Tensor, valid_BK: Tensor | None = None) -> None:
        if index_BK.dim() != 2 or index_BK.is_floating_point():
            raise ValueError(
                f"index_BK must be long [B, K], got {index_BK.dtype} {list(index_BK.shape)}"
            )
        if valid_BK is not None and valid_BK.shape != index_BK.shape:
            raise ValueError(
                f"valid_BK must have shape {list(index_BK.shape)}, got {list(valid_BK.shape)}"
            )
        super().__init__(index_BK, valid_BK)

    def reduce(self, x_BNC: Tensor) -> Tensor:
        """Return the kept tokens [B, K, C]."""
        return take_rows(x_BNC, self._index_BK)

    def restore_onto(self, y_BKC: Tensor, base_BNC: Tensor) -> Tensor:
        """Return ``base_BNC`` with the kept tokens' rows replaced in place."""
        return self._put_anchors(y_BKC, base_BNC, onto=True)
