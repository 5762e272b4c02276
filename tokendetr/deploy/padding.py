"""Run a backbone on a padded canvas with the same results as on each image alone.

In evaluation, a detector runs its backbone on every image at the image's own size. An exported
program has one canvas for images of any size. So operations that mix neighboring pixels
(convolutions, pooling, statistics of group norms) must see zeros beyond an image's border, as if
the image ended there.

Shapes: B image, C channel, H and W height and width of a feature map, S values of a group of
channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tokendetr.errors import ExportError

_MIXING = (F.scaled_dot_product_attention, F.softmax, torch.softmax, Tensor.softmax, torch.roll)
"""Functions of attention among tokens, which would see the padding."""


class IgnorePadding(TorchFunctionMode):
    """Torch-function mode in which convolutions, pooling and group norms ignore padding.

    Args:
        canvas: height and width of the images with their padding.
        sizes_B2: long, the real height and width of each image.

    Raises:
        ExportError: the model uses an operation that cannot ignore padding.
    """

    def __init__(self, canvas: tuple[int, int], sizes_B2: Tensor) -> None:
        super().__init__()
        self._sizes = {tuple(canvas): sizes_B2}
        self._masks: dict[tuple[int, int], Tensor] = {}

    def sizes_B2(self, features_BCHW: Tensor) -> Tensor:
        """Return the real height and width of each image in a feature map."""
        shape = (int(features_BCHW.shape[-2]), int(features_BCHW.shape[-1]))
        if shape not in self._sizes:
            raise ExportError(
                f"a feature map of {shape[0]} x {shape[1]} comes from an operation that is "
                "neither a convolution nor pooling, so it is unknown where images end: export the "
                "model for images that fill the canvas (padding=False, --no-padding)"
            )
        return self._sizes[shape]

    def mask_B1HW(self, features_BCHW: Tensor) -> Tensor:
        """Return bool [B, 1, H, W], True for the real part of a feature map."""
        height, width = (int(size) for size in features_BCHW.shape[-2:])
        if (height, width) not in self._masks:
            sizes_B2 = self.sizes_B2(features_BCHW)
            rows_BH = torch.arange(height, device=sizes_B2.device) < sizes_B2[:, :1]
            columns_BW = torch.arange(width, device=sizes_B2.device) < sizes_B2[:, 1:]
            self._masks[height, width] = (rows_BH[:, :, None] & columns_BW[:, None, :])[:, None]
        return self._masks[height, width]

    def real(self, features_BCHW: Tensor) -> Tensor:
        """Return features with zeros in the padding."""
        return features_BCHW * self.mask_B1HW(features_BCHW).to(features_BCHW.dtype)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.conv2d:
            return self._convolution(*args, **kwargs)
        if func in (torch.max_pool2d, F.max_pool2d):
            return self._max_pool(*args, **kwargs)
        if func is F.group_norm:
            return self._group_norm(*args, **kwargs)
        if func in _MIXING:
            raise ExportError(
                "the backbone has attention, which would see the padding of images smaller than "
                "the canvas: export the model for images that fill it (padding=False, "
                "--no-padding)"
            )
        return func(*args, **kwargs)

    def _record(self, source: Tensor, result: Tensor, window: Sequence[Sequence[int]]) -> None:
        """Record the real sizes after a sliding window (kernel, stride, padding, dilation)."""
        sizes_B2 = self.sizes_B2(source)
        axes = []
        for axis, (kernel, stride, padding, dilation) in enumerate(zip(*window, strict=True)):
            reach = 2 * padding - dilation * (kernel - 1) - 1
            length_B = (sizes_B2[:, axis] + reach).div(stride, rounding_mode="floor") + 1
            axes.append(length_B.clamp_min(1))
        self._sizes[int(result.shape[-2]), int(result.shape[-1])] = torch.stack(axes, dim=1)

    def _convolution(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        kernel = tuple(int(size) for size in weight.shape[2:])
        source = input if kernel == (1, 1) else self.real(input)
        result = F.conv2d(source, weight, bias, stride, padding, dilation, groups)
        if result.shape[-2:] != input.shape[-2:]:
            border = (0, 0) if isinstance(padding, str) else _pair(padding)  # "valid": "same" keeps
            self._record(input, result, (kernel, _pair(stride), border, _pair(dilation)))
        return result

    def _max_pool(
        self,
        input: Tensor,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        if ceil_mode or return_indices:
            raise ExportError(
                "max pooling with ceil_mode or return_indices cannot leave padding out"
            )
        stride = kernel_size if stride is None or stride == [] else stride
        lowest = torch.finfo(input.dtype).min
        source = input.masked_fill(~self.mask_B1HW(input), lowest)
        result = torch.max_pool2d(source, kernel_size, stride, padding, dilation)  # type: ignore[arg-type]
        window = (_pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation))
        self._record(input, result, window)
        return result.masked_fill(~self.mask_B1HW(result), 0.0)

    def _group_norm(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        mask_B1HW = self.mask_B1HW(input).to(input.dtype)
        groups_BGS = (input * mask_B1HW).unflatten(1, (num_groups, -1)).flatten(2)
        in_group = input.shape[1] // num_groups
        count_B11 = mask_B1HW.sum(dim=(2, 3)).mul(in_group)[..., None]
        mean_BG1 = groups_BGS.sum(dim=2, keepdim=True) / count_B11
        member_B1S = mask_B1HW.expand(-1, in_group, -1, -1).flatten(1)[:, None]
        centered_BGS = (groups_BGS - mean_BG1) * member_B1S
        variance_BG1 = centered_BGS.square().sum(dim=2, keepdim=True) / count_B11
        normed = (centered_BGS * (variance_BG1 + eps).rsqrt()).view_as(input)
        if weight is not None:
            normed = normed * weight[:, None, None]
        return normed if bias is None else normed + bias[:, None, None]


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[-1]))
