"""Backbones from timm."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling.backbone import Backbone

logger = logging.getLogger(__name__)


class TimmBackbone(Backbone):
    """A timm model as feature extractor; feature ``i`` is named ``p<i>``.

    Args:
        model_name: name of the timm model.
        features_only: let timm build a feature extractor.
        pretrained: let timm download weights.
        checkpoint_path: file with weights to load.
        in_channels: channels of the images.
        out_indices: indices of the returned features.
        norm_layer: class of the normalization layers, e.g. ``FrozenBatchNorm2d``.

    Raises:
        ImportError: timm is not installed.
        TypeError: ``pretrained`` is not a bool.
        ValueError: timm cannot build the model with these arguments.
    """

    def __init__(
        self,
        model_name: str,
        features_only: bool = True,
        pretrained: bool = False,
        checkpoint_path: str = "",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        norm_layer: Any = None,
    ) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError("TimmBackbone needs the package timm: pip install timm") from error
        if not isinstance(pretrained, bool):
            raise TypeError(
                f"pretrained must be True or False, got {pretrained!r}; a path goes to"
                " checkpoint_path"
            )
        if features_only and checkpoint_path:
            warnings.warn("timm may fail to load checkpoint_path together with features_only")
        try:
            self.timm_model = timm.create_model(
                model_name=model_name,
                features_only=features_only,
                pretrained=pretrained,
                in_chans=in_channels,
                out_indices=tuple(out_indices),
                checkpoint_path=checkpoint_path,
                norm_layer=norm_layer,
            )
        except Exception as error:
            raise ValueError(
                f"timm cannot build {model_name!r} (features_only={features_only},"
                f" out_indices={tuple(out_indices)}, norm_layer={norm_layer}): {error}"
            ) from error
        self.out_indices = out_indices
        self._describe_features(getattr(self.timm_model, "feature_info", None))

    def _describe_features(self, feature_info: Any) -> None:
        """Take names, channels and strides of the features from timm's description."""
        if feature_info is None:
            logger.warning("%s has no feature_info", type(self.timm_model).__name__)
            return
        self._out_features = [f"p{index}" for index in self.out_indices]
        channels, strides = feature_info.channels(), feature_info.reduction()
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        logger.info("backbone out_channels: %s, out_strides: %s", channels, strides)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images [B, in_channels, H, W] to features by name."""
        features = self.timm_model(x)
        return {f"p{i}": feature for i, feature in zip(self.out_indices, features, strict=True)}
