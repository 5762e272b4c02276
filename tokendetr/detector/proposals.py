"""Two-stage query initialization: the best-scored encoder tokens become the first boxes.

Shapes: B image, N all tokens, Q selected proposals, C channel, V class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokendetr.encoder.forward_context import current_pass
from tokendetr.layers.precision import at_least_float32
from tokendetr.tokens import LevelLayout, longest_count, map_counts, valid_from_counts

PROPOSALS = "first 300 queries"
"""Name, in a recorded trace, of the map of tokens that queries start from."""
DRAWN_QUERIES = 300


@dataclass(frozen=True)
class Proposals:
    """Predictions of the two-stage head for every token, and the tokens that it selects.

    Attributes:
        tokens_BNC: projected encoder tokens; those that can start no box were zeroed before.
        logits_BNV: class logits.
        boxes_logit_BN4: cxcywh before the sigmoid; +inf for tokens that can start no box.
        indices_BQ: the selected tokens, best first.
        valid_BQ: False for a selection beyond an image's last token; None when all are real.
    """

    tokens_BNC: Tensor
    logits_BNV: Tensor
    boxes_logit_BN4: Tensor
    indices_BQ: Tensor
    valid_BQ: Tensor | None

    def select(self, values_BNX: Tensor) -> Tensor:
        """Return the rows [B, Q, X] of the selected tokens."""
        return values_BNX.gather(1, self.indices_BQ[..., None].expand(-1, -1, values_BNX.shape[-1]))

    def selected_outputs(self) -> dict[str, Tensor]:
        """Return upstream's ``enc_outputs`` of the selected tokens (DINO)."""
        return {
            "pred_logits": at_least_float32(self.select(self.logits_BNV)),
            "pred_boxes": self.select(self.boxes_logit_BN4).sigmoid(),
        }

    def dense_outputs(self) -> dict[str, Tensor]:
        """Return upstream's ``enc_outputs`` of every token (Deformable DETR)."""
        return {
            "pred_logits": at_least_float32(self.logits_BNV),
            "pred_boxes": self.boxes_logit_BN4.sigmoid(),
        }


def max_class_score(logits_BNV: Tensor) -> Tensor:
    """Score each token by its best class (DINO, DAB)."""
    return logits_BNV.amax(-1)


def first_class_score(logits_BNV: Tensor) -> Tensor:
    """Score each token by class 0, which binary encoder targets train (Deformable DETR, H-DETR)."""
    return logits_BNV[..., 0]


def select_top(
    scores_BN: Tensor, layout: LevelLayout, limit: int, *, skip_padding: bool
) -> tuple[Tensor, Tensor | None]:
    """Select the best ``limit`` tokens of each image, or as many as there are.

    Args:
        scores_BN: score of each token.
        layout: geometry of the batch.
        limit: wanted number of tokens.
        skip_padding: rank padding below every real token. An image with fewer tokens than the
            batch's largest selection gets its own tokens first and then padding, marked invalid.

    Returns:
        indices_BQ, best first, and valid_BQ (None when every selected token counts).
    """
    scores_BN = scores_BN.detach()
    if not skip_padding:
        return scores_BN.topk(min(limit, layout.num_tokens), dim=1).indices, None
    counts = map_counts(layout.token_counts, lambda count: min(limit, count))
    k = longest_count(counts)
    if layout.may_have_padding:
        scores_BN = scores_BN.masked_fill(layout.padding_BN, float("-inf"))
    indices_BQ = scores_BN.topk(k, dim=1).indices
    return indices_BQ, valid_from_counts(counts, k, scores_BN.device)


def propose(
    memory_BNC: Tensor,
    layout: LevelLayout,
    *,
    project: Callable[[Tensor], Tensor],
    class_head: nn.Module,
    box_head: nn.Module,
    score: Callable[[Tensor], Tensor],
    limit: int,
    skip_padding: bool,
) -> Proposals:
    """Score every token as a proposal and select the best.

    A token proposes a box centered on its cell, 0.05 * 2^level of the image wide and high. Padding,
    and tokens closer than 1 % to the border, propose none: their features are zeroed.

    Source: Deformable DETR, section 4.2 and appendix A.4.
    Differs: k is clamped to the number of tokens, and padding is skipped if the caller requests it.
    """
    anchors_logit_BN4, usable_BN = layout.proposals()
    tokens_BNC = project(memory_BNC.masked_fill(~usable_BN[..., None], 0.0))
    logits_BNV = class_head(tokens_BNC)
    offsets_BN4 = box_head(tokens_BNC)
    boxes_logit_BN4 = offsets_BN4 + anchors_logit_BN4
    indices_BQ, valid_BQ = select_top(score(logits_BNV), layout, limit, skip_padding=skip_padding)
    _record(indices_BQ, layout)
    return Proposals(tokens_BNC, logits_BNV, boxes_logit_BN4, indices_BQ, valid_BQ)


def _record(indices_BQ: Tensor, layout: LevelLayout) -> None:
    """Record where the first queries start, if the pass is recorded (Dynamic DETR, Figure 6)."""
    if torch.compiler.is_compiling():  # context variables would break the graph
        return
    trace = current_pass().recorder.forward
    if trace is not None and trace.layout.num_tokens == layout.num_tokens:
        started_BN = torch.zeros(layout.valid_BN.shape, device=indices_BQ.device)
        trace.maps[PROPOSALS] = started_BN.scatter(1, indices_BQ[:, :DRAWN_QUERIES], 1.0)
