"""The keep ratio that Sparse DETR's sparsifiers share."""

from tokendetr.encoder import TokenSparsifier
from tokendetr.errors import check_share

__all__ = ["RatioSparsifier"]


class RatioSparsifier(TokenSparsifier):
    """A sparsifier that updates a share of each image's real tokens; may be changed at any time."""

    @property
    def keep_ratio(self) -> float:
        """Share of an image's real tokens that is updated, in [0, 1]."""
        return self._keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, ratio: float) -> None:
        self.set_keep_ratio(ratio)

    def set_keep_ratio(self, ratio: float) -> None:
        """Change the share of an image's real tokens that is updated, in [0, 1].

        Raises:
            ValueError: the ratio is out of range.
        """
        self._keep_ratio = check_share("keep_ratio", ratio, zero=True)
