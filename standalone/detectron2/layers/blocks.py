"""Base class of the blocks of convolutional networks."""

from torch import nn

from .batch_norm import FrozenBatchNorm2d

__all__ = ["CNNBlockBase"]


class CNNBlockBase(nn.Module):
    """A block with known input and output channels and stride, which can be frozen.

    Args:
        in_channels: channels of the input [B, C, H, W].
        out_channels: channels of the output.
        stride: by how much the block shrinks height and width.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> "CNNBlockBase":
        """Stop gradients of all parameters and turn batch norms into frozen ones.

        Returns the block itself.
        """
        for parameter in self.parameters():
            parameter.requires_grad = False
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self
