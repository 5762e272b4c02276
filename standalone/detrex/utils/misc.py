"""Small tensor helpers of the detectors."""

import torch
import torch.nn.functional as F


def interpolate(
    input: torch.Tensor,
    size: list[int] | None = None,
    scale_factor: float | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> torch.Tensor:
    """Resize ``input`` [B, C, H, W] to ``size`` or by ``scale_factor``.

    The same as :func:`torch.nn.functional.interpolate`, which also accepts batches without
    elements.
    """
    return F.interpolate(input, size, scale_factor, mode, align_corners)


def inverse_sigmoid(x: torch.Tensor, eps: float = 1e-3) -> torch.Tensor:
    """Compute the logit of ``x``, bounded at both ends.

    Args:
        x: probabilities, any shape; values outside [0, 1] are clamped.
        eps: smallest value that ``x`` and ``1 - x`` may take inside the logarithm.

    Returns:
        ``log(max(x, eps) / max(1 - x, eps))``, the shape of ``x``, within ``±log(1 / eps)``.
    """
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
