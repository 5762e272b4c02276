"""A frozen dense encoder, whose memory is the target of the center alignment.

Shapes: B image, N all tokens, C channel.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokendetr.encoder import EncoderContext, TokenEncoder

_KEY = "sparsifier.teacher."


class FrozenTeacher(nn.Module):
    """A dense encoder that is never trained.

    The target of the two-pass alignment is a dense pass of the weights that are being fine-tuned
    for fewer tokens, so it drifts with them. A teacher keeps the weights it was given.

    Args:
        encoder: dense, of the same form as the encoder that is trained.

    Raises:
        ValueError: the encoder has a sparsifier.
    """

    is_ready: Tensor

    def __init__(self, encoder: TokenEncoder) -> None:
        super().__init__()
        if encoder.sparsifier is not None:
            raise ValueError("the teacher must be a dense encoder, without a sparsifier")
        self.encoder = encoder.requires_grad_(False)
        self.register_buffer("is_ready", torch.tensor(False))
        self.eval()

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stay in evaluation mode, without dropout."""
        return super().train(False)

    def forward(self, context: EncoderContext) -> Tensor:
        """Return the dense memory [B, N, C] of a pass.

        Raises:
            RuntimeError: the teacher was given no weights.
        """
        if not self.is_ready:
            raise RuntimeError(
                "the teacher of alignment='teacher' has no weights: train.init_checkpoint "
                "must name a trained dense detector"
            )
        return self.encoder.run_dense(context)


def with_teacher(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's weights with a copy of its encoder's as the teacher's.

    Weights that already have a teacher's, as in a resumed run, are returned unchanged.
    """
    found = dict(weights)
    if any(_KEY in key for key in found):
        return found
    for key, value in weights.items():
        owner, encoder, name = key.rpartition("encoder.layers.")
        if not encoder:
            owner, encoder, name = key.rpartition("encoder.post_norm_layer.")
        if encoder:
            inner = encoder.removeprefix("encoder.")
            found[f"{owner}encoder.{_KEY}encoder.{inner}{name}"] = value
            found[f"{owner}encoder.{_KEY}is_ready"] = torch.tensor(True)
    return found
