"""Lite DETR as a token sparsifier: most layers update coarse levels, some update all.

Shapes: B image, K tokens, N all tokens, T tokens of the fine levels, C channel.
"""

import torch
from torch import Tensor, nn

from tokendetr.encoder import EncoderContext, TokenPlan, TokenSparsifier, ValuePolicy
from tokendetr.layers.encoder_layer import SplitFeedForward
from tokendetr.tokens import Keep, TokenMap


class NarrowFeedForward(nn.Module):
    """A feed-forward network with its own residual and norm.

    Args:
        embed_dim: channels C.
        feedforward_dim: hidden channels.
    """

    def __init__(self, *, embed_dim: int, feedforward_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(embed_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, tokens_BTC: Tensor) -> Tensor:
        """Return the tokens [B, T, C] after the network."""
        hidden = self.linear1(tokens_BTC).relu()
        updated: Tensor = self.norm(tokens_BTC + self.linear2(hidden))
        return updated


class LiteSparsifier(TokenSparsifier):
    """Updates coarse levels in every layer, fine levels only in the last layer of each block.

    Values are all levels in every layer. The paper's "H3L1-(2+1)x3" is three high levels and three
    blocks of two layers; "H3L1-(6+1)x1" is one block of six.

    Args:
        embed_dim: channels C of the encoder.
        num_layers: encoder layers.
        num_levels: feature levels L.
        high_levels: number H of the coarsest levels, which every layer updates, at least 1.
        num_blocks: blocks of equally many layers; must divide ``num_layers``.
        narrow_dim: hidden channels of the fine levels' own feed-forward network; 0: they share the
            layer's.
        value_policy: see :class:`tokendetr.encoder.TokenSparsifier`.

    Raises:
        ValueError: a value is out of range; the message names the argument.

    Source: Lite DETR, arXiv 2303.07335, section 3, and its published code. Differs: attention
    weights are those of deformable attention (the paper's key-aware attention is left out; its
    authors report nearly equal accuracy).
    """

    def __init__(
        self,
        *,
        embed_dim: int = 256,
        num_layers: int = 6,
        num_levels: int = 4,
        high_levels: int = 3,
        num_blocks: int = 3,
        narrow_dim: int = 256,
        value_policy: ValuePolicy = "updated",
    ) -> None:
        super().__init__(value_policy=value_policy)
        if not 1 <= high_levels <= num_levels:
            raise ValueError(f"high_levels must lie in [1, {num_levels}], got {high_levels}")
        if num_blocks < 1 or num_layers % num_blocks:
            raise ValueError(
                f"num_blocks must divide the encoder's {num_layers} layers, got {num_blocks}"
            )
        if narrow_dim < 0:
            raise ValueError(f"narrow_dim must be at least 0, got {narrow_dim}")
        self.num_layers = num_layers
        self.num_levels = num_levels
        self.low_levels = num_levels - high_levels
        self.block_length = num_layers // num_blocks
        self.narrow_ffns = nn.ModuleDict(
            {
                str(layer): NarrowFeedForward(embed_dim=embed_dim, feedforward_dim=narrow_dim)
                for layer in range(num_layers)
                if narrow_dim and self.low_levels and self.is_full(layer)
            }
        )

    def is_full(self, layer: int) -> bool:
        """Return True if a layer, from 0, updates all levels."""
        return (layer + 1) % self.block_length == 0

    def faults(self, num_layers: int, num_levels: int) -> list[str]:
        """Describe numbers of layers or levels that differ from the encoder's."""
        own, its = (self.num_layers, self.num_levels), (num_layers, num_levels)
        if own == its:
            return []
        return [
            f"it is for {own[0]} layers and {own[1]} levels, the encoder has {its[0]} and {its[1]}"
        ]

    def plan(self, context: EncoderContext) -> "LitePlan":
        """Return the plan of one forward pass.

        Raises:
            ValueError: the encoder has another number of layers or levels.
        """
        self.check(context.num_layers, context.layout.num_levels)
        return LitePlan(context, self)


class LitePlan(TokenPlan):
    """One forward pass: a map of the coarse levels and one of all levels.

    Args:
        context: the forward pass.
        sparsifier: the options and the networks.
    """

    def __init__(self, context: EncoderContext, sparsifier: LiteSparsifier) -> None:
        super().__init__(context)
        self.options = sparsifier
        layout = context.layout
        self._num_low = sum(layout.level_sizes[: sparsifier.low_levels])
        index_BK = torch.arange(self._num_low, layout.num_tokens, device=layout.device)
        valid_BN = layout.valid_if_padded_BN
        self._high = Keep(
            index_BK=index_BK.expand(layout.batch_size, -1).contiguous(),
            valid_BK=None if valid_BN is None else valid_BN[:, self._num_low :],
        )

    def token_map(self, layer: int, memory_BNC: Tensor) -> TokenMap:
        """Return the coarse levels' tokens, or all of them in the last layer of a block."""
        every = self.options.is_full(layer) or not self.options.low_levels
        return self._identity if every else self._high

    def feed_forward(self, layer: int) -> SplitFeedForward | None:
        """Return the fine levels' network in layers that update them."""
        if str(layer) not in self.options.narrow_ffns:
            return None
        return SplitFeedForward(self._num_low, self.options.narrow_ffns[str(layer)])
