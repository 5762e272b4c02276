"""Multi-layer perceptrons: the plain one of heads, and the block of transformer layers."""

import torch
import torch.nn.functional as F
from torch import nn


class MLP(nn.Module):
    """Linear layers with ReLU between them, none after the last.

    Args:
        input_dim: channels of the input.
        hidden_dim: channels between the layers.
        output_dim: channels of the output.
        num_layers: number of linear layers, at least 1.
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        widths = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(
            nn.Linear(width_in, width_out)
            for width_in, width_out in zip(widths[:-1], widths[1:], strict=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., input_dim] to [..., output_dim]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class FFN(nn.Module):
    """Feed-forward block of a transformer layer: dropout after every layer, residual connection.

    Args:
        embed_dim: channels of the input.
        feedforward_dim: channels between the layers.
        output_dim: channels of the output, ``embed_dim`` when None.
        num_fcs: number of linear layers, at least 2.
        activation: module between the layers (shared by all of them); a ReLU when None.
        ffn_drop: dropout probability.
        fc_bias: add a bias to the linear layers.
        add_identity: add the result to the identity.

    Raises:
        ValueError: ``num_fcs`` below 2.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        feedforward_dim: int = 1024,
        output_dim: int | None = None,
        num_fcs: int = 2,
        activation: nn.Module | None = None,
        ffn_drop: float = 0.0,
        fc_bias: bool = True,
        add_identity: bool = True,
    ) -> None:
        super().__init__()
        if num_fcs < 2:
            raise ValueError(f"FFN needs num_fcs >= 2, got {num_fcs}")
        self.embed_dim = embed_dim
        self.feedforward_dim = feedforward_dim
        self.num_fcs = num_fcs
        self.activation = nn.ReLU(inplace=True) if activation is None else activation
        widths = [embed_dim, *[feedforward_dim] * (num_fcs - 1)]
        hidden = [
            nn.Sequential(
                nn.Linear(width_in, width_out, bias=fc_bias), self.activation, nn.Dropout(ffn_drop)
            )
            for width_in, width_out in zip(widths[:-1], widths[1:], strict=True)
        ]
        output_dim = embed_dim if output_dim is None else output_dim
        self.layers = nn.Sequential(
            *hidden, nn.Linear(feedforward_dim, output_dim, bias=fc_bias), nn.Dropout(ffn_drop)
        )
        self.add_identity = add_identity

    def forward(self, x: torch.Tensor, identity: torch.Tensor | None = None) -> torch.Tensor:
        """Map [..., embed_dim] to [..., output_dim].

        Args:
            x: the input.
            identity: residual to add to the result if configured, ``x`` when None.
        """
        out = self.layers(x)
        if not self.add_identity:
            return out
        return (x if identity is None else identity) + out
