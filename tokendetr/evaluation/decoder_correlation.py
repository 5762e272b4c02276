"""The Corr metric: the share of the decoder's attention that falls on tokens the encoder updates.

Shapes: B image, N all tokens, L level.
"""

import math
import statistics
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from tokendetr.encoder.decoder_attention import MAP_NAME
from tokendetr.encoder.forward_context import record_tokens
from tokendetr.encoder.trace import ForwardTrace, TokenTrace
from tokendetr.errors import check_choice
from tokendetr.tokens import LevelLayout, chosen_tokens, select_tokens

__all__ = ["CorrEvaluator", "updated_attention"]


Layers = Literal["mean", "any", "first", "last"]
LAYERS = ("mean", "any", "first", "last")


def updated_attention(
    forward: ForwardTrace, *, layers: Layers = "mean", top: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the decoder's attention to the tokens that the encoder updates, and to all tokens.

    Args:
        forward: a recorded pass with the decoder's attention.
        layers: which tokens count as updated. "mean": the average over layers, so that an encoder
            which updates a share r of random tokens has Corr r, whether or not every layer chooses
            others; "any": those that at least one layer updates; "first", "last": those of that
            layer.
        top: count only the share of tokens with the most attention, in (0, 1]; None for all.

    Returns:
        Two float64 tensors [B, L], both without padding.

    Raises:
        ValueError: the attention was not recorded.

    Source: Sparse DETR, arXiv 2111.14330, section 4.2 (its one kept set makes all modes of
    ``layers`` equal); Focus-DETR, arXiv 2307.12612, section 4.3 (the top 10 %).
    """
    layout = forward.layout
    if MAP_NAME not in forward.maps:
        raise ValueError(
            "the decoder's attention was not recorded: this needs a detector with a deformable "
            "decoder, and tokendetr.encoder.observe(model) for a detector of another library"
        )
    mass_BN = forward.maps[MAP_NAME].double() * layout.valid_BN
    if top is not None:
        mass_BN = _highest(mass_BN, layout, top)
    updated_BN = _updated(forward, layers)
    return tuple(  # type: ignore[return-value]
        torch.stack([part.sum(dim=1) for part in layout.split(mass)], dim=1)
        for mass in (mass_BN * updated_BN, mass_BN)
    )


def _updated(forward: ForwardTrace, layers: Layers) -> Tensor:
    """Return the share of layers that update each token, float64 [B, N]."""
    valid_BN = forward.layout.valid_BN
    chosen = {"first": forward.layers[:1], "last": forward.layers[-1:]}.get(layers, forward.layers)
    count_BN = torch.zeros(valid_BN.shape, dtype=torch.float64, device=valid_BN.device)
    for layer in chosen:
        anchor_BK, valid_BK = layer.token_map.anchor_BK, layer.token_map.valid_BK
        if anchor_BK is None:
            count_BN += valid_BN
        else:
            count_BN += chosen_tokens(anchor_BK, valid_BK, valid_BN.shape[1])
    return (count_BN > 0).double() if layers == "any" else count_BN / max(len(chosen), 1)


def _highest(mass_BN: Tensor, layout: LevelLayout, top: float) -> Tensor:
    """Return the mass of each image's top share of real tokens, and 0 for the others."""
    counts = [math.ceil(top * sum(levels)) for levels in layout.valid_counts]
    index_BK, own_BK = select_tokens(mass_BN, counts, layout)
    return mass_BN * chosen_tokens(index_BK, own_BK, layout.num_tokens)


class CorrEvaluator(DatasetEvaluator):
    """Evaluator that averages Corr over a data set, for all levels together and for each one.

    Add it to the evaluator of a config::

        dataloader.evaluator = L(DatasetEvaluators)(
            evaluators=[dataloader.evaluator, L(CorrEvaluator)()]
        )

    Results are under "decoder_attention", in percent: ``Corr``, ``Corr_level1`` and so on (NaN for
    a level without attention), ``Corr_spread``, the standard deviation over images, and
    ``Looked_at``, the share of an image's real tokens that get any of the decoder's attention.

    Args:
        layers: see :func:`updated_attention`.
        top: see :func:`updated_attention`; Focus-DETR uses 0.1.

    Raises:
        ValueError: an argument is out of range.

    Source: Sparse DETR, arXiv 2111.14330, section 4.2 and, for ``Looked_at``, Figure 10, which
    counts the tokens nearest to the sampling points; here all tokens that interpolation reads
    count. Focus-DETR, arXiv 2307.12612, table 3.
    """

    def __init__(self, *, layers: Layers = "mean", top: float | None = None) -> None:
        check_choice("layers", layers, LAYERS)
        if top is not None and not 0 < top <= 1:
            raise ValueError(f"top must lie in (0, 1], got {top}")
        self._layers: Layers = layers
        self._top = top
        self._recording = ExitStack()
        self._trace = TokenTrace()
        self._shares: list[list[float]] = []
        self._looked_at: list[float] = []

    def reset(self) -> None:
        """Start recording the model's tokens and attention."""
        self._recording.close()
        self._trace = self._recording.enter_context(record_tokens())
        self._shares = []
        self._looked_at = []

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Process the recording of the batch, and discard it.

        Raises:
            ValueError: the model has no encoder or decoder that can be recorded.
        """
        forwards = list(self._trace.forwards)
        self._trace.forwards.clear()
        if not forwards:
            raise ValueError("the model has no encoder of tokendetr: no tokens were recorded")
        updated_BL, all_BL = updated_attention(forwards[-1], layers=self._layers, top=self._top)
        for kept_L, mass_L in zip(updated_BL.tolist(), all_BL.tolist(), strict=True):
            parts = [(sum(kept_L), sum(mass_L)), *zip(kept_L, mass_L, strict=True)]
            self._shares.append([kept / mass if mass else float("nan") for kept, mass in parts])
        valid_BN = forwards[-1].layout.valid_BN
        seen_B = ((forwards[-1].maps[MAP_NAME] > 0) & valid_BN).sum(dim=1) / valid_BN.sum(dim=1)
        self._looked_at += seen_B.tolist()

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Return the means over all ranks' images on rank 0, None on the others."""
        self._recording.close()
        shares = [row for rows in comm.gather(self._shares) for row in rows]
        looked_at = [share for rows in comm.gather(self._looked_at) for share in rows]
        if not comm.is_main_process():
            return None
        mean = torch.tensor(shares, dtype=torch.float64).nanmean(dim=0).mul(100).tolist()
        names = ["Corr", *(f"Corr_level{level}" for level in range(1, len(mean)))]
        total = [row[0] for row in shares if not math.isnan(row[0])]
        spread = 100 * statistics.pstdev(total) if total else float("nan")
        shown = dict(zip(names, mean, strict=True))
        shown |= {"Corr_spread": spread, "Looked_at": 100 * statistics.mean(looked_at)}
        return OrderedDict(decoder_attention=shown)
