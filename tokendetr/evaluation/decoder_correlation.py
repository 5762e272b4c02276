"""How much of what the decoder looks at was updated by the encoder: the Corr metric.

Shapes: B image, N all tokens, L level.
"""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from tokendetr.encoder.decoder_attention import MAP_NAME
from tokendetr.encoder.trace import ForwardTrace, TokenTrace, record_tokens

__all__ = ["CorrEvaluator", "updated_attention"]


def updated_attention(forward: ForwardTrace) -> tuple[Tensor, Tensor]:
    """Return the decoder's attention to tokens that at least one layer updated, and to all tokens.

    Args:
        forward: a recorded pass with the decoder's attention.

    Returns:
        Two float64 tensors [B, L]; padding is left out of both.

    Raises:
        ValueError: where the attention was not recorded.

    Source: Sparse DETR, arXiv 2111.14330, section 4.2.
    """
    layout = forward.layout
    if MAP_NAME not in forward.maps:
        raise ValueError(
            "the decoder's attention was not recorded: the model must be supervised "
            "(tokendetr.config.sparsify does that) and its decoder deformable"
        )
    updated_BN = torch.zeros_like(layout.valid_BN)
    for layer in forward.layers:
        anchor_BK, valid_BK = layer.token_map.anchor_BK, layer.token_map.valid_BK
        if anchor_BK is None:
            updated_BN = layout.valid_BN
            break
        kept_BK = torch.ones_like(anchor_BK) if valid_BK is None else valid_BK
        updated_BN = updated_BN | torch.zeros_like(updated_BN).scatter(1, anchor_BK, kept_BK.bool())
    mass_BN = forward.maps[MAP_NAME].double() * layout.valid_BN
    return tuple(  # type: ignore[return-value]
        torch.stack([part.sum(dim=1) for part in layout.split(mass)], dim=1)
        for mass in (mass_BN * updated_BN, mass_BN)
    )


class CorrEvaluator(DatasetEvaluator):
    """Averages Corr over a data set, of all levels together and of each one.

    It stands beside the evaluator of a config:

        dataloader.evaluator = L(DatasetEvaluators)(
            evaluators=[dataloader.evaluator, L(CorrEvaluator)()]
        )

    Results are under "tokens": ``Corr`` and ``Corr_level1`` and so on, in percent; NaN where the
    decoder looked nowhere. Source: Sparse DETR, arXiv 2111.14330, section 4.2.
    """

    def __init__(self) -> None:
        self._recording = ExitStack()
        self._trace = TokenTrace()
        self._shares: list[list[float]] = []

    def reset(self) -> None:
        """Begin to record what the model does."""
        self._recording.close()
        self._trace = self._recording.enter_context(record_tokens())
        self._shares = []

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Read what was recorded of the batch, and forget it.

        Raises:
            ValueError: the model is none whose encoder and decoder can be looked at.
        """
        forwards = list(self._trace.forwards)
        self._trace.forwards.clear()
        if not forwards:
            raise ValueError("the model's encoder is none of tokendetr's: no tokens were recorded")
        updated_BL, all_BL = updated_attention(forwards[-1])
        for kept_L, mass_L in zip(updated_BL.tolist(), all_BL.tolist(), strict=True):
            parts = [(sum(kept_L), sum(mass_L)), *zip(kept_L, mass_L, strict=True)]
            self._shares.append([kept / mass if mass else float("nan") for kept, mass in parts])

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Return the means over all processes' images, on rank 0; None on others."""
        self._recording.close()
        shares = [row for rows in comm.gather(self._shares) for row in rows]
        if not comm.is_main_process():
            return None
        mean = torch.tensor(shares, dtype=torch.float64).nanmean(dim=0).mul(100).tolist()
        names = ["Corr", *(f"Corr_level{level}" for level in range(1, len(mean)))]
        return OrderedDict(tokens=dict(zip(names, mean, strict=True)))
