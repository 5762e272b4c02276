"""The selection loss, and metrics of how well a selection covers the objects.

Shapes: B image, N tokens of a stage.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor
from torch.nn import functional as F

from spt_backbone.block import Selection
from tokendetr.tokens import Pack

GateLoss = Literal["combined", "own"]
GATE_LOSSES = ("combined", "own")
THRESHOLDS = (0.01, 0.1, 0.3, 0.5, 0.7)
"""Thresholds at which the share of selected tokens is logged."""


def selection_loss(
    selections: Sequence[Selection],
    labels: Mapping[int, Tensor],
    *,
    of: GateLoss = "combined",
    positive_weight: float = 1.0,
) -> Tensor:
    """Return the binary cross-entropy of the scores: mean over real tokens, sum over blocks.

    Args:
        selections: of all blocks and of the gate before them.
        labels: by stage, the object tokens, bool [B, N].
        of: "combined": the scores that decide, of which a token's loss trains the larger one of two
            scales alone; "own": each gate's own scores.
        positive_weight: weight of object tokens (the paper's appendix B.1).

    Source: SPT, arXiv 2410.23608, equation 10.
    """
    losses = []
    for selection in selections:
        valid_BN = selection.layout.valid_BN
        logit_BN = selection.own_BN if of == "own" else selection.logit_BN
        loss_BN = F.binary_cross_entropy_with_logits(
            logit_BN.masked_fill(~valid_BN, 0.0),
            labels[selection.stage].to(logit_BN),
            reduction="none",
            pos_weight=logit_BN.new_tensor(positive_weight),
        )
        losses.append(loss_BN.masked_fill(~valid_BN, 0.0).sum() / valid_BN.sum().clamp_min(1))
    return torch.stack(losses).sum()


def selection_masks(selections: Sequence[Selection]) -> dict[int, Tensor]:
    """Return by stage the selections of its blocks, bool [blocks, B, N]."""
    masks: dict[int, list[Tensor]] = {}
    for selection in selections:
        if isinstance(selection.pack, Pack):
            mask_BN = torch.zeros_like(selection.layout.valid_BN)
            mask_BN.view(-1)[selection.pack.index_P] = True
            masks.setdefault(selection.stage, []).append(mask_BN)
    return {stage: torch.stack(blocks) for stage, blocks in masks.items()}


def write_metrics(selections: Sequence[Selection], labels: Mapping[int, Tensor] | None) -> None:
    """Write select ratios and object-token retention of each stage to the event storage.

    Per stage: ``select_ratio``, its minimum and maximum over images, and, with labels,
    ``object_token_retention`` (selected share of the object tokens) and ``object_token_density``
    (share of object tokens among the selected ones). ``select_ratio_at_<threshold>`` is the share
    that the gates would select without noise at each of :data:`THRESHOLDS`.

    Args:
        selections: of all blocks.
        labels: by stage, the object tokens, bool [B, N], or None.
    """
    if not has_event_storage():
        return
    storage = get_event_storage()
    valid = {s.stage: s.layout.valid_BN for s in selections if s.pack is not None}
    for stage, mask_LBN in selection_masks(selections).items():
        ratio_B = mask_LBN.float().mean(0).sum(-1) / valid[stage].sum(-1).clamp_min(1)
        values = {
            "select_ratio": ratio_B.mean(),
            "select_ratio_min": ratio_B.min(),
            "select_ratio_max": ratio_B.max(),
        }
        if labels is not None:
            label_BN = labels[stage] & valid[stage]
            hits = (mask_LBN & label_BN).sum().float()
            # A batch without objects loses none: retention 1.
            objects = label_BN.sum() * len(mask_LBN)
            values["object_token_retention"] = torch.where(objects > 0, hits / objects, 1.0)
            values["object_token_density"] = hits / mask_LBN.sum().clamp_min(1)
        values.update(_ratios_at_thresholds(selections, stage))
        numbers = torch.stack([value.float() for value in values.values()]).tolist()
        for name, number in zip(values, numbers, strict=True):
            storage.put_scalar(f"{name}/stage{stage}", number)


def _ratios_at_thresholds(selections: Sequence[Selection], stage: int) -> dict[str, Tensor]:
    """Return the share of a stage's real tokens whose probability is above each threshold."""
    blocks = [s for s in selections if s.stage == stage and s.pack is not None]
    logit_LBN = torch.stack([block.logit_BN.detach() for block in blocks])
    valid_BN = blocks[0].layout.valid_BN
    count = valid_BN.sum().clamp_min(1) * len(blocks)
    return {
        f"select_ratio_at_{threshold:g}": ((logit_LBN.sigmoid() > threshold) & valid_BN).sum()
        / count
        for threshold in THRESHOLDS
    }
