"""ConvNeXt (Liu et al., 2022, "A ConvNet for the 2020s")."""

from collections.abc import Sequence

import torch
from detectron2.modeling.backbone import Backbone
from detrex.layers import LayerNorm
from detrex.layers._drop_path import DropPath
from torch import nn


class Block(nn.Module):
    """Residual block: depthwise 7x7 convolution, norm and a two-layer MLP over channels.

    Args:
        dim: channels.
        drop_path: probability that a sample skips the block in training.
        layer_scale_init_value: start of the learned per-channel factor; 0 leaves it out.
    """

    def __init__(
        self, dim: int, drop_path: float = 0.0, layer_scale_init_value: float = 1e-6
    ) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = (
            nn.Parameter(torch.full((dim,), layer_scale_init_value))
            if layer_scale_init_value > 0
            else None
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, dim, H, W] to the same shape."""
        out = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        out = self.pwconv2(self.act(self.pwconv1(out)))
        if self.gamma is not None:
            out = self.gamma * out
        return x + self.drop_path(out.permute(0, 3, 1, 2))


class ConvNeXt(Backbone):
    """Four stages of blocks at strides 4, 8, 16 and 32; the output of stage i is named ``p<i>``.

    Args:
        in_chans: channels of the images.
        depths: blocks per stage.
        dims: channels per stage.
        drop_path_rate: skip probability of the last block, growing linearly from 0.
        layer_scale_init_value: see :class:`Block`.
        out_indices: stages whose output is returned.
        frozen_stages: number of leading stages without gradients; none when negative.

    Raises:
        ValueError: ``frozen_stages`` above 4.
    """

    def __init__(
        self,
        in_chans: int = 3,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
    ) -> None:
        super().__init__()
        if frozen_stages > 4:
            raise ValueError(f"ConvNeXt has 4 stages, got frozen_stages={frozen_stages}")
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(in_chans, dims[0], kernel_size=4, stride=4),
                    LayerNorm(dims[0], eps=1e-6, channel_last=False),
                )
            ]
        )
        for dim_in, dim_out in zip(dims[:3], dims[1:4], strict=True):
            self.downsample_layers.append(
                nn.Sequential(
                    LayerNorm(dim_in, eps=1e-6, channel_last=False),
                    nn.Conv2d(dim_in, dim_out, kernel_size=2, stride=2),
                )
            )
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths)).tolist())
        self.stages = nn.ModuleList(
            nn.Sequential(*[Block(dim, next(rates), layer_scale_init_value) for _ in range(depth)])
            for dim, depth in zip(dims, depths, strict=True)
        )
        for index in out_indices:
            self.add_module(f"norm{index}", LayerNorm(dims[index], eps=1e-6, channel_last=False))
        self.apply(self._init_weights)
        self._freeze_stages()
        self._out_features = [f"p{i}" for i in out_indices]
        self._out_feature_channels = {f"p{i}": dims[i] for i in out_indices}
        self._out_feature_strides = {f"p{i}": 2 ** (i + 2) for i in out_indices}

    def _freeze_stages(self) -> None:
        """Put the frozen stages in evaluation mode and take their gradients away."""
        for index in range(max(self.frozen_stages, 0)):
            for part in (self.downsample_layers[index], self.stages[index]):
                part.eval()
                part.requires_grad_(False)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        """Draw truncated normal weights of linear layers and set biases to 0."""
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def train(self, mode: bool = True) -> "ConvNeXt":
        """Switch the mode of all but the frozen stages."""
        super().train(mode)
        self._freeze_stages()
        return self

    def forward_features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the normalized outputs of the configured stages by name."""
        outputs = {}
        for index, (downsample, stage) in enumerate(
            zip(self.downsample_layers, self.stages, strict=True)
        ):
            x = stage(downsample(x))
            if index in self.out_indices:
                outputs[f"p{index}"] = getattr(self, f"norm{index}")(x)
        return outputs

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images [B, in_chans, H, W] to features by name, finest first."""
        return self.forward_features(x)
