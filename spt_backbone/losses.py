"""The selection loss, and how well a selection covers the objects.

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
"""At which the log tells how much the gates would select."""


def selection_loss(
    selections: Sequence[Selection],
    labels: Mapping[int, Tensor],
    *,
    of: GateLoss = "combined",
    positive_weight: float = 1.0,
) -> Tensor:
    """Return binary cross-entropy of the scores, averaged over real tokens, summed over blocks.

    Args:
        selections: of all blocks and of the gate before them.
        labels: by stage, bool [B, N]: what contains something of an object.
        of: "combined": the scores that decide, so that a token's loss reaches the larger one of two
            scales alone; "own": each gate's own scores.
        positive_weight: what tokens of objects count (the paper's appendix B.1).

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
    """Return by stage what its blocks selected, bool [blocks, B, N]."""
    masks: dict[int, list[Tensor]] = {}
    for selection in selections:
        if isinstance(selection.pack, Pack):
            mask_BN = torch.zeros_like(selection.layout.valid_BN)
            mask_BN.view(-1)[selection.pack.index_P] = True
            masks.setdefault(selection.stage, []).append(mask_BN)
    return {stage: torch.stack(blocks) for stage, blocks in masks.items()}


def write_metrics(selections: Sequence[Selection], labels: Mapping[int, Tensor] | None) -> None:
    """Put select ratios and object-token retention of each stage into the event storage.

    Per stage: ``select_ratio``, its smallest and largest value among the images, and, with labels,
    ``object_token_retention`` (selected part of the tokens that contain something of an object) and
    ``object_token_density`` (part of the selected tokens that do). ``select_ratio_at_<threshold>``
    is what the gates would select without noise at each of :data:`THRESHOLDS`.

    Args:
        selections: of all blocks.
        labels: by stage, bool [B, N], or None.
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
            # A batch without objects keeps all of none.
            objects = label_BN.sum() * len(mask_LBN)
            values["object_token_retention"] = torch.where(objects > 0, hits / objects, 1.0)
            values["object_token_density"] = hits / mask_LBN.sum().clamp_min(1)
        values.update(_ratios_at_thresholds(selections, stage))
        numbers = torch.stack([value.float() for value in values.values()]).tolist()
        for name, number in zip(values, numbers, strict=True):
            storage.put_scalar(f"{name}/stage{stage}", number)


def _ratios_at_thresholds(selections: Sequence[Selection], stage: int) -> dict[str, Tensor]:
    """Return the part of a stage's real tokens whose probability is above each threshold."""
    blocks = [s for s in selections if s.stage == stage and s.pack is not None]
    logit_LBN = torch.stack([block.logit_BN.detach() for block in blocks])
    valid_BN = blocks[0].layout.valid_BN
    count = valid_BN.sum().clamp_min(1) * len(blocks)
    return {
        f"select_ratio_at_{threshold:g}": ((logit_LBN.sigmoid() > threshold) & valid_BN).sum()
        / count
        for threshold in THRESHOLDS
    }
