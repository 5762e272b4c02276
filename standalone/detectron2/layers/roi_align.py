"""RoIAlign (He et al., Mask R-CNN, 2017) in plain torch.

Shapes: N box, P bin along one axis, S its samples.
"""

import torch
from torch import Tensor, nn

__all__ = ["ROIAlign", "roi_align"]


def _axis_weights(
    low_N: Tensor, high_N: Tensor, bins: int, size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Return weights [N, bins, size] that average the samples of every bin along one axis."""
    length_N = high_N - low_N
    if not aligned:
        length_N = length_N.clamp(min=1.0)
    bin_N = length_N / bins
    if sampling_ratio > 0:
        count_N = torch.full_like(bin_N, sampling_ratio)
    else:
        count_N = bin_N.ceil().clamp(min=0.0)  # a box without extent has no samples
    most = max(1, int(count_N.max().item())) if count_N.numel() else 1
    divisor_N = count_N.clamp(min=1.0)
    sample_S = torch.arange(most, device=low_N.device, dtype=low_N.dtype)
    bin_P = torch.arange(bins, device=low_N.device, dtype=low_N.dtype)
    inside_NS = (sample_S[None] + 0.5) / divisor_N[:, None]
    valid_NS = sample_S[None] < count_N[:, None]
    position_NPS = (
        low_N[:, None, None] + (bin_P[None, :, None] + inside_NS[:, None]) * bin_N[:, None, None]
    )
    valid_NPS = valid_NS[:, None] & (position_NPS >= -1.0) & (position_NPS <= size)
    position_NPS = position_NPS.clamp(min=0.0, max=size - 1.0)
    pixel_H = torch.arange(size, device=low_N.device, dtype=low_N.dtype)
    weight_NPSH = (1.0 - (position_NPS[..., None] - pixel_H).abs()).clamp(min=0.0)
    summed_NPH = (weight_NPSH * valid_NPS[..., None]).sum(dim=2)
    return summed_NPH / divisor_N[:, None, None]


def roi_align(
    input: Tensor,
    boxes: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Average bilinear samples in the bins of each box.

    Args:
        input: [B, C, H, W].
        boxes: [N, 5]: image index and xyxy in input coordinates divided by ``spatial_scale``.
        output_size: bins (height, width).
        spatial_scale: factor from box coordinates to feature coordinates.
        sampling_ratio: samples per bin and axis; 0 or less means ``ceil(bin size)``.
        aligned: shift boxes by half a pixel, so that pixel centers are at half-integers.

    Returns:
        [N, C, height, width].
    """
    offset = 0.5 if aligned else 0.0
    scaled = boxes[:, 1:].to(torch.float32) * spatial_scale - offset
    x0, y0, x1, y1 = scaled.unbind(dim=1)
    height, width = input.shape[-2:]
    rows_NPH = _axis_weights(y0, y1, output_size[0], height, sampling_ratio, aligned)
    columns_NQW = _axis_weights(x0, x1, output_size[1], width, sampling_ratio, aligned)
    chosen_NCHW = input[boxes[:, 0].long()]
    dtype = chosen_NCHW.dtype
    return torch.einsum(
        "nph,nchw,nqw->ncpq", rows_NPH.to(dtype), chosen_NCHW, columns_NQW.to(dtype)
    )


class ROIAlign(nn.Module):
    """Module form of :func:`roi_align`, aligned by default."""

    def __init__(
        self,
        output_size: tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool [B, C, H, W] in the boxes [N, 5] (image index, xyxy)."""
        assert rois.dim() == 2 and rois.size(1) == 5
        return roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )
