"""Options of a reduction, checked."""

from dataclasses import dataclass
from math import ceil
from typing import Literal, get_args

from tokendetr.errors import check_choice, check_share

Method = Literal["transforming", "pruning", "merging", "fusing", "clustering"]
Selection = Literal["attention", "class_attention", "uniform", "pooled", "distinct"]
Sizes = Literal["carried", "literal"]
RecoveryKind = Literal["paper", "residual", "affine"]
Similarity = Literal["cosine", "euclidean"]

METHODS: tuple[str, ...] = get_args(Method)
SELECTIONS: tuple[str, ...] = get_args(Selection)
_SCALING = frozenset({"transforming", "merging"})
"""Methods for which later attention is proportional to token sizes by default."""


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """Options of a reduction from N to K tokens.

    Attributes:
        method: "transforming" (many-to-many), "pruning", "merging" (bipartite matching of keys),
            "fusing" (the inattentive become one token) or "clustering" (local soft clusters).
        keep_ratio: K / N, in (0, 1]; K is rounded up.
        threshold: cosine similarities below it count as 0 (transforming), in [-1, 1].
        temperature: sharpness of the assignment (transforming), > 0.
        selection: choice of the informative tokens (transforming, pruning, fusing): those that
            receive most "attention" from all tokens or most "class_attention" from the class
            token, evenly spaced ones ("uniform"), or those least similar to other kept ones
            ("distinct", not in the paper). "pooled" (transforming) uses means over a coarse grid
            instead of tokens.
        similarity: measure of similarity (transforming): "cosine", or "euclidean", 1 - d^2 / (2 n)
            with the distance d and the mean squared length n of the tokens, which equals the
            cosine if all are equally long.
        normalize: make a token's shares sum to 1 (transforming; the softmax of equation 5);
            otherwise they are the gated similarities.
        sizes: "carried": repeated transforms count the original tokens in each token; "literal":
            equation 8 as printed, which counts anew in every transform.
        scale_attention: later attention adds log sizes to its logits; None: as in the method's
            paper.
        recovery: how tokens are restored: "paper", each becomes its reduced token (equation 10);
            "residual", each keeps its content and adds its reduced token's change since the
            reduction (not in the paper); "affine", that plus an affine map of both, fitted to
            images (:func:`token_transforming.fit_recovery`; not in the paper). "Its" reduced token
            is the nearest (equation 9); with method "transforming" and another recovery than the
            paper's the most similar, which is known from the assignment.
        removed: number of tokens to remove, instead of a keep ratio, as in Token Merging; at most
            half.

    Raises:
        ValueError: a value is out of range.

    Source: Token Transforming, arXiv 2506.05709, section 3 and Table 6.
    """

    method: Method = "transforming"
    keep_ratio: float = 0.7
    threshold: float = 0.5
    temperature: float = 150.0
    selection: Selection = "attention"
    sizes: Sizes = "carried"
    scale_attention: bool | None = None
    recovery: RecoveryKind = "paper"
    similarity: Similarity = "cosine"
    normalize: bool = True
    removed: int | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_choice("selection", self.selection, SELECTIONS)
        check_choice("sizes", self.sizes, get_args(Sizes))
        check_choice("recovery", self.recovery, get_args(RecoveryKind))
        check_choice("similarity", self.similarity, get_args(Similarity))
        if self.selection == "pooled" and self.method != "transforming":
            raise ValueError(
                f"selection='pooled' chooses no tokens, which method={self.method!r} needs: use it "
                "with method='transforming'"
            )
        if not self.normalize and self.threshold < 0:
            raise ValueError(
                "normalize=False needs a threshold of at least 0: the shares are the similarities "
                f"and must not be negative, got threshold={self.threshold}"
            )
        if self.removed is not None and self.removed < 0:
            raise ValueError(f"removed must be at least 0, got {self.removed}")
        check_share("keep_ratio", self.keep_ratio)
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold is a cosine similarity in [-1, 1], got {self.threshold}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    @property
    def scales(self) -> bool:
        """True if later attention is proportional to token sizes."""
        if self.scale_attention is None:
            return self.method in _SCALING
        return self.scale_attention

    @property
    def lays_out_grid(self) -> bool:
        """True if reduced tokens are cells of a coarser grid, provided that tokens form a grid."""
        return self.method == "clustering" or self.selection == "pooled"

    @property
    def follows_feed_forward(self) -> bool:
        """True if a block reduces its output, False if it reduces before the feed-forward network.

        Clustering stands between whole blocks, as in Hourglass. The other methods stand right after
        the attention, whose statistics they use; the feed-forward network then has fewer tokens.
        """
        return self.method == "clustering"

    def kept(self, tokens: int) -> int:
        """Return K for N tokens, at least 1."""
        if self.removed is not None:
            return max(tokens - self.removed, (tokens + 1) // 2)
        # Rounding errors of the product must not add a token: 0.7 * 10 is 7.000000000000001.
        return max(1, ceil(self.keep_ratio * tokens - 1e-9))

    def kept_grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the reduced grid, of about the same proportions.

        Its number of cells is the nearest to ``keep_ratio`` times N.
        """
        if self.keep_ratio == 1:
            return height, width
        wanted = self.keep_ratio * height * width
        side = self.keep_ratio**0.5
        rows_around = {max(1, int(side * height) + more) for more in (0, 1)}
        columns_around = {max(1, int(side * width) + more) for more in (0, 1)}
        grids = [
            (rows, columns)
            for rows in sorted(rows_around, reverse=True)
            for columns in sorted(columns_around)
            if rows <= height and columns <= width
        ]
        return min(grids, key=lambda grid: abs(grid[0] * grid[1] - wanted))


def merging_schedule(removed: int, blocks: int, inflection: float = 0.0) -> tuple[int, ...]:
    """Return the number of tokens that each block removes, linear over the blocks.

    Args:
        removed: their mean.
        blocks: number of blocks.
        inflection: 0: constant; -1: from twice the mean down to none; 1: the reverse.

    Raises:
        ValueError: ``inflection`` is outside of [-1, 1].

    Source: Token Merging, arXiv 2210.09461, section 3 and appendix (constant and decreasing).
    """
    if not -1 <= inflection <= 1:
        raise ValueError(f"inflection must be in [-1, 1], got {inflection}")
    first, last = removed * (1 - inflection), removed * (1 + inflection)
    steps = max(blocks - 1, 1)
    return tuple(int(first + (last - first) * block / steps) for block in range(blocks))
