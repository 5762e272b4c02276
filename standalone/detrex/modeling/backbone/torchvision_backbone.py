"""Backbones from torchvision."""

from typing import Any

import torch
from detectron2.modeling.backbone import Backbone

_RESNET_NODES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}


class TorchvisionBackbone(Backbone):
    """A torchvision model as feature extractor.

    Args:
        model_name: name of the function in ``torchvision.models``.
        pretrained: let torchvision download its default weights.
        return_nodes: name of each returned feature by the name of its node in the model;
            by default the four stages of a ResNet as res2 to res5.
        train_return_nodes: nodes in training, if they differ.
        eval_return_nodes: nodes in evaluation, if they differ.
        tracer_kwargs: arguments of the tracer.
        suppress_diff_warnings: do not warn about differences between both modes.
        **kwargs: arguments of the model, ``weights`` among them.

    Raises:
        ImportError: torchvision is not installed.
        ValueError: torchvision has no such model.
    """

    def __init__(
        self,
        model_name: str = "resnet50",
        pretrained: bool = False,
        return_nodes: dict[str, str] | None = None,
        train_return_nodes: dict[str, str] | None = None,
        eval_return_nodes: dict[str, str] | None = None,
        tracer_kwargs: dict[str, Any] | None = None,
        suppress_diff_warnings: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        try:
            import torchvision
            from torchvision.models.feature_extraction import create_feature_extractor
        except ImportError as error:
            raise ImportError(
                "TorchvisionBackbone needs the package torchvision: pip install torchvision"
            ) from error
        build = getattr(torchvision.models, model_name, None)
        if build is None:
            raise ValueError(f"torchvision.models has no model {model_name!r}")
        if pretrained:
            kwargs.setdefault("weights", "DEFAULT")
        self.model = build(**kwargs)
        if return_nodes is None and train_return_nodes is None:
            return_nodes = _RESNET_NODES
        self.feature_extractor = create_feature_extractor(
            self.model,
            return_nodes=return_nodes,
            train_return_nodes=train_return_nodes,
            eval_return_nodes=eval_return_nodes,
            tracer_kwargs=tracer_kwargs,
            suppress_diff_warning=suppress_diff_warnings,
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images [B, 3, H, W] to features by name."""
        return self.feature_extractor(x)
