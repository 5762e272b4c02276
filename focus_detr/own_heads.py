"""The projection and heads that Focus-DETR needs in a one-stage detector, which has none.

Shapes: B image, N all tokens, Q proposal, C channel, V class.
"""

from typing import Any

from torch import Tensor, nn

from tokendetr.detector.criterion import world_average_boxes
from tokendetr.detector.heads import build_heads, start_at_references
from tokendetr.detector.token_losses import add_detection_losses
from tokendetr.encoder.aux_losses import AuxLosses
from tokendetr.encoder.detector_view import project_tokens
from tokendetr.tokens import LevelLayout, select_tokens, take_rows

NUM_PROPOSALS = 300
"""Tokens per image in the heads' losses, as in two-stage Deformable DETR."""


class OwnHeads(nn.Module):
    """A two-stage head for the token selector alone.

    It is trained like a detector's: its best tokens of the encoder's output are matched to the
    boxes.

    Args:
        embed_dim: channels C.
        num_classes: classes V of the detector.

    Source: Focus-DETR, arXiv 2307.12612, equation 6, the loss of the last encoder layer's output;
    parameter names of Deformable DETR's two-stage head.
    """

    def __init__(self, *, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.enc_output = nn.Linear(embed_dim, embed_dim)
        self.enc_output_norm = nn.LayerNorm(embed_dim)
        self.class_embed, self.bbox_embed = build_heads(
            embed_dim=embed_dim,
            num_classes=num_classes,
            count=1,
            shared=False,
            sized_references=True,
        )

    def init_weights(self) -> None:
        """Zero the box head again, after a transformer has initialized every matrix by Xavier."""
        start_at_references(self.bbox_embed)

    @property
    def class_head(self) -> nn.Module:
        """The head that predicts class logits of projected tokens."""
        return self.class_embed[0]

    @property
    def box_head(self) -> Any:
        """The head that predicts box offsets of projected tokens."""
        return self.bbox_embed[0]

    def project(self, memory_BNC: Tensor, layout: LevelLayout) -> Tensor:
        """Return tokens [B, N, C] projected, as ``DetectorView.project`` does."""
        return project_tokens(memory_BNC, layout, self.enc_output, self.enc_output_norm)

    def add_losses(
        self,
        losses: AuxLosses,
        memory_BNC: Tensor,
        layout: LevelLayout,
        criterion: nn.Module | None = None,
    ) -> None:
        """Add the losses on the best tokens, ``loss_..._enc``.

        Args:
            losses: of the forward pass.
            memory_BNC: the encoder's output.
            layout: the batch.
            criterion: one of detrex's set criteria; None: the detector's own.
        """
        tokens_BNC = self.project(memory_BNC, layout)
        logits_BNV = self.class_head(tokens_BNC)
        counts = [NUM_PROPOSALS] * layout.batch_size
        index_BQ, valid_BQ = select_tokens(logits_BNV.amax(dim=-1), counts, layout)
        offset_BQ4 = self.box_head(take_rows(tokens_BNC, index_BQ))
        anchor_BQ4 = take_rows(layout.proposals()[0], index_BQ)
        targets = [{"labels": target.labels} for target in losses.targets]
        add_detection_losses(
            losses,
            take_rows(logits_BNV, index_BQ),
            (offset_BQ4 + anchor_BQ4).sigmoid(),
            valid_BK=valid_BQ,
            num_boxes=world_average_boxes(targets, memory_BNC.device),
            suffix="_enc",
            criterion=criterion,
        )
