"""Packing with shapes that do not depend on the selection, for exported graphs.

Shapes: B image, N tokens of an image, G container, T slots of a container, C channel.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


class StaticPack:
    """Packs selected tokens into as many containers as all tokens would need.

    Results are those of :class:`tokendetr.tokens.Pack`: an image's selected tokens are cut, in
    their order, into groups of ``length``; but images never share a container.

    Args:
        mask_BN: bool, the selected tokens.
        order_BN: long, the tokens in packing order.
        length: slots T of a container.
    """

    def __init__(self, mask_BN: Tensor, order_BN: Tensor, length: int) -> None:
        batch, tokens = mask_BN.shape
        picked_BN = mask_BN.gather(1, order_BN)
        first_BN = (~picked_BN).to(torch.int32).sort(dim=1, stable=True).indices
        token_BN = order_BN.gather(1, first_BN)
        missing = -tokens % length
        image_B1 = torch.arange(batch, device=mask_BN.device)[:, None]
        place_N = torch.arange(tokens + missing, device=mask_BN.device)
        used_BN = place_N < mask_BN.sum(dim=1, keepdim=True)
        self.index_GT = (F.pad(token_BN, (0, missing)) + image_B1 * tokens).view(-1, length)
        self.segment_GT = used_BN.to(torch.int32).sub(1).view(-1, length)
        self._mask_BN = mask_BN
        self._slot_BN = token_BN.argsort(dim=1) + image_B1 * (tokens + missing)

    def reduce(self, x_BNC: Tensor) -> Tensor:
        """Return the containers [G, T, C]; padding slots hold tokens that were not selected."""
        rows = x_BNC.flatten(0, 1).index_select(0, self.index_GT.flatten())
        return rows.unflatten(0, self.index_GT.shape)

    def restore(self, y_GTC: Tensor, base_BNC: Tensor) -> Tensor:
        """Return ``base_BNC`` with the selected rows replaced by the containers' slots."""
        row_BNC = y_GTC.flatten(0, 1).index_select(0, self._slot_BN.flatten()).view_as(base_BNC)
        return torch.where(self._mask_BN[..., None], row_BNC, base_BNC)

    def select(self, x_BN: Tensor) -> Tensor:
        """Return the attributes [G, T, ...] that tokens [B, N, ...] have."""
        return self.reduce(x_BN)
