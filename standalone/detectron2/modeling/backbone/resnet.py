"""ResNet (He et al., Deep Residual Learning for Image Recognition, 2015)."""
# Over 350 lines: upstream has all of this in one module, and users find it there.

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import Backbone
from .build import BACKBONE_REGISTRY

__all__ = [
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "ResNet",
    "ResNetBlockBase",
    "build_resnet_backbone",
    "make_stage",
]

ResNetBlockBase = CNNBlockBase
"""Name of the base class of blocks in older code."""


def _projection(in_channels: int, out_channels: int, stride: int, norm: Any) -> Conv2d | None:
    """Return the 1x1 convolution of the shortcut; None if the channels do not change."""
    if in_channels == out_channels:
        return None
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=1,
        stride=stride,
        bias=False,
        norm=get_norm(norm, out_channels),
    )


def _init_convs(*convs: Conv2d | None) -> None:
    for conv in convs:
        if conv is not None:
            weight_init.c2_msra_fill(conv)


class BasicBlock(CNNBlockBase):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and ResNet-34.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution.
        norm: see :func:`detectron2.layers.get_norm`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Any = "BN"
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = _projection(in_channels, out_channels, stride, norm)
        self.conv1 = Conv2d(
            in_channels,
            out_channels,
            kernel_size=3,
            stride=stride,
            padding=1,
            bias=False,
            norm=get_norm(norm, out_channels),
        )
        self.conv2 = Conv2d(
            out_channels,
            out_channels,
            kernel_size=3,
            stride=1,
            padding=1,
            bias=False,
            norm=get_norm(norm, out_channels),
        )
        _init_convs(self.conv1, self.conv2, self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, H / stride, W / stride]."""
        out = self.conv2(F.relu_(self.conv1(x)))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class BottleneckBlock(CNNBlockBase):
    """1x1, 3x3 and 1x1 convolution and a shortcut: the block of ResNet-50, 101 and 152.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        bottleneck_channels: channels of the 3x3 convolution.
        stride: of the block.
        num_groups: groups of the 3x3 convolution (ResNeXt).
        norm: see :func:`detectron2.layers.get_norm`.
        stride_in_1x1: stride in the first 1x1 convolution (as MSRA's weights need) instead of the
            3x3 one (torchvision).
        dilation: of the 3x3 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Any = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = _projection(in_channels, out_channels, stride, norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = Conv2d(
            in_channels,
            bottleneck_channels,
            kernel_size=1,
            stride=stride_1x1,
            bias=False,
            norm=get_norm(norm, bottleneck_channels),
        )
        self.conv2 = Conv2d(
            bottleneck_channels,
            bottleneck_channels,
            kernel_size=3,
            stride=stride_3x3,
            padding=dilation,
            bias=False,
            groups=num_groups,
            dilation=dilation,
            norm=get_norm(norm, bottleneck_channels),
        )
        self.conv3 = Conv2d(
            bottleneck_channels,
            out_channels,
            kernel_size=1,
            bias=False,
            norm=get_norm(norm, out_channels),
        )
        _init_convs(self.conv1, self.conv2, self.conv3, self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, H / stride, W / stride]."""
        out = F.relu_(self.conv1(x))
        out = F.relu_(self.conv2(out))
        out = self.conv3(out)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class BasicStem(CNNBlockBase):
    """7x7 convolution with stride 2 and 3x3 max pooling with stride 2.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the output.
        norm: see :func:`detectron2.layers.get_norm`.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Any = "BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = Conv2d(
            in_channels,
            out_channels,
            kernel_size=7,
            stride=2,
            padding=3,
            bias=False,
            norm=get_norm(norm, out_channels),
        )
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 3, H, W] to [B, C, H / 4, W / 4]."""
        x = F.relu_(self.conv1(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


_DEPTHS: dict[int, list[int]] = {
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}


class ResNet(Backbone):
    """A stem, stages named ``res2``, ``res3``, ... and optionally a classifier.

    Args:
        stem: the stem block.
        stages: lists of blocks, one list per stage (3 or more names follow: ``res2`` first).
        num_classes: add average pooling and a linear classifier ``linear`` when given.
        out_features: outputs of :meth:`forward`, of "stem", "res2", ..., "linear"; by default only
            the last.
        freeze_at: see :meth:`freeze`.
    """

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: list[list[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: list[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.num_classes = num_classes
        stride = stem.stride
        self._out_feature_strides = {"stem": stride}
        self._out_feature_channels = {"stem": stem.out_channels}

        if out_features is not None:
            # stages after the last requested one are not built
            wanted = [{"res2": 1, "res3": 2, "res4": 3, "res5": 4}.get(f, 0) for f in out_features]
            stages = stages[: max(wanted)]
        self.stage_names = tuple(f"res{index + 2}" for index in range(len(stages)))
        self.stages: list[nn.Sequential] = []
        channels = stem.out_channels
        for name, blocks in zip(self.stage_names, stages, strict=True):
            assert len(blocks) > 0, len(blocks)
            for block in blocks:
                assert isinstance(block, CNNBlockBase), block
                stride *= block.stride
            channels = blocks[-1].out_channels
            stage = nn.Sequential(*blocks)
            self.add_module(name, stage)
            self.stages.append(stage)
            self._out_feature_strides[name] = stride
            self._out_feature_channels[name] = channels

        last = self.stage_names[-1] if self.stage_names else "stem"
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(channels, num_classes)
            # Goyal et al., Accurate, Large Minibatch SGD (2017), 5.1
            nn.init.normal_(self.linear.weight, std=0.01)
            last = "linear"
        self._out_features = [last] if out_features is None else list(out_features)
        assert len(self._out_features)
        children = [name for name, _ in self.named_children()]
        for name in self._out_features:
            assert name in children, f"{name} is not one of the available {', '.join(children)}"
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images [B, C, H, W] to the wanted feature maps by name."""
        assert x.dim() == 4, f"ResNet takes images [B, C, H, W], not {tuple(x.shape)}"
        outputs = {}
        x = self.stem(x)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            x = stage(x)
            if name in self._out_features:
                outputs[name] = x
        if self.num_classes is not None:
            x = torch.flatten(self.avgpool(x), 1)
            x = self.linear(x)
            if "linear" in self._out_features:
                outputs["linear"] = x
        return outputs

    def freeze(self, freeze_at: int = 0) -> "ResNet":
        """Freeze the first parts: 0 none, 1 the stem, 2 also ``res2``, and so on.

        Frozen blocks get no gradients and their batch norms become :class:`FrozenBatchNorm2d`.

        Returns:
            This network.
        """
        if freeze_at >= 1:
            self.stem.freeze()
        for index, stage in enumerate(self.stages, start=2):
            if freeze_at >= index:
                for block in stage.children():
                    assert isinstance(block, CNNBlockBase)
                    block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase],
        num_blocks: int,
        *,
        in_channels: int,
        out_channels: int,
        **kwargs: Any,
    ) -> list[CNNBlockBase]:
        """Make the blocks of one stage.

        Args:
            block_class: class of all blocks.
            num_blocks: how many.
            in_channels: input channels of the first block.
            out_channels: output channels of every block.
            kwargs: passed to every block; a name ending in ``_per_block`` holds a list with one
                value per block.
        """
        blocks = []
        for index in range(num_blocks):
            own = {}
            for key, value in kwargs.items():
                if key.endswith("_per_block"):
                    assert len(value) == num_blocks, (
                        f"{key} has {len(value)} values for {num_blocks} blocks"
                    )
                    name = key[: -len("_per_block")]
                    assert name not in kwargs, f"make_stage() takes {name} or {key}, not both"
                    own[name] = value[index]
                else:
                    own[key] = value
            blocks.append(block_class(in_channels=in_channels, out_channels=out_channels, **own))
            in_channels = out_channels
        return blocks

    @staticmethod
    def make_default_stages(
        depth: int, block_class: type[CNNBlockBase] | None = None, **kwargs: Any
    ) -> list[list[CNNBlockBase]]:
        """Make the four stages of a standard ResNet.

        Args:
            depth: 18, 34, 50, 101 or 152.
            block_class: by default :class:`BasicBlock` below depth 50 and :class:`BottleneckBlock`
                from there.
            kwargs: passed to every block, such as ``norm`` and ``stride_in_1x1``.
        """
        if block_class is None:
            block_class = BasicBlock if depth < 50 else BottleneckBlock
        if depth < 50:
            in_channels, out_channels = [64, 64, 128, 256], [64, 128, 256, 512]
        else:
            in_channels, out_channels = [64, 256, 512, 1024], [256, 512, 1024, 2048]
        stages = []
        for count, stride, c_in, c_out in zip(
            _DEPTHS[depth], [1, 2, 2, 2], in_channels, out_channels, strict=True
        ):
            if depth >= 50:
                kwargs["bottleneck_channels"] = c_out // 4
            stages.append(
                ResNet.make_stage(
                    block_class=block_class,
                    num_blocks=count,
                    stride_per_block=[stride] + [1] * (count - 1),
                    in_channels=c_in,
                    out_channels=c_out,
                    **kwargs,
                )
            )
        return stages


make_stage = ResNet.make_stage


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: Any, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet from the ``MODEL.RESNETS`` section of a yacs config."""
    section = cfg.MODEL.RESNETS
    depth, norm = section.DEPTH, section.NORM
    stem = BasicStem(
        in_channels=input_shape.channels or 3, out_channels=section.STEM_OUT_CHANNELS, norm=norm
    )
    kwargs: dict[str, Any] = {"norm": norm}
    if depth >= 50:
        kwargs["stride_in_1x1"] = section.STRIDE_IN_1X1
    stages = ResNet.make_default_stages(depth, **kwargs)
    return ResNet(
        stem,
        stages,
        out_features=list(section.OUT_FEATURES),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
