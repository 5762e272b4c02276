"""Interface of all backbones."""

from abc import ABCMeta, abstractmethod

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

__all__ = ["Backbone"]


class Backbone(nn.Module, metaclass=ABCMeta):
    """Base class of networks from images to named feature maps.

    Subclasses set ``_out_features`` (names in order), ``_out_feature_channels`` and
    ``_out_feature_strides`` (by name), or override :meth:`output_shape`.
    """

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images [B, 3, H, W] to feature maps by name, finest first."""

    @property
    def size_divisibility(self) -> int:
        """Divisor of the input's height and width; 0 if any size works."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further constraints on the padding of the input.

        Keys: ``square_size`` (side of the square to pad to), ``size_divisibility``.
        """
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return the channels and stride of each feature map."""
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }
