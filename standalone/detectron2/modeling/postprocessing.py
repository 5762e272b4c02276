"""Transform detections from the coordinates of the network's input to those of the image."""

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch.nn import functional as F

__all__ = ["detector_postprocess"]


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale detections to another image size, clip them and drop the empty ones.

    Args:
        results: detections at ``results.image_size``, with ``pred_boxes`` or ``proposal_boxes`` and
            optionally ``pred_masks`` and ``pred_keypoints``. Its boxes are not changed.
        output_height: wanted height in pixels.
        output_width: wanted width in pixels.
        mask_threshold: probability from which a pixel belongs to a mask.

    Returns:
        The detections that are not empty, at ``(output_height, output_width)``.
    """
    new_size = (int(output_height), int(output_width))
    scale_x = float(output_width) / results.image_size[1]
    scale_y = float(output_height) / results.image_size[0]
    results = Instances(new_size, **results.get_fields())

    if results.has("pred_boxes"):
        name = "pred_boxes"
    elif results.has("proposal_boxes"):
        name = "proposal_boxes"
    else:
        raise AssertionError("predictions need pred_boxes or proposal_boxes")
    boxes: Boxes = results.get(name).clone()
    boxes.scale(scale_x, scale_y)
    boxes.clip(results.image_size)
    results.set(name, boxes)
    results = results[boxes.nonempty()]

    if results.has("pred_masks"):
        results.pred_masks = _full_size_masks(results, mask_threshold)
    if results.has("pred_keypoints"):
        keypoints = results.pred_keypoints.clone()
        keypoints[:, :, 0] *= scale_x
        keypoints[:, :, 1] *= scale_y
        results.pred_keypoints = keypoints
    return results


def _full_size_masks(results: Instances, threshold: float) -> torch.Tensor:
    """Return masks [N, H, W] (bool) at the image size.

    The masks of the results are relative to their boxes, [N, 1, M, M], or to the image, [N, h, w].
    """
    masks = results.pred_masks
    if isinstance(masks, BitMasks):
        masks = masks.tensor
    height, width = results.image_size
    if masks.dim() == 4 and masks.shape[1] == 1:
        return _paste_masks(masks[:, 0].float(), results.pred_boxes, (height, width)) >= threshold
    if masks.shape[-2:] == (height, width):
        return masks if masks.dtype == torch.bool else masks >= threshold
    resized = F.interpolate(
        masks[:, None].float(), size=(height, width), mode="bilinear", align_corners=False
    )
    return resized[:, 0] >= threshold


def _paste_masks(masks_NMM: torch.Tensor, boxes: Boxes, size: tuple[int, int]) -> torch.Tensor:
    """Sample box-relative masks on the image's pixel grid, [N, H, W]; zero outside the boxes."""
    height, width = size
    if masks_NMM.shape[0] == 0:
        return masks_NMM.new_zeros((0, height, width))
    x0, y0, x1, y1 = (side[:, None] for side in boxes.tensor.to(masks_NMM.device).unbind(dim=1))
    rows = torch.arange(height, device=masks_NMM.device, dtype=torch.float32)[None] + 0.5
    columns = torch.arange(width, device=masks_NMM.device, dtype=torch.float32)[None] + 0.5
    y_NH = (rows - y0) / (y1 - y0) * 2 - 1
    x_NW = (columns - x0) / (x1 - x0) * 2 - 1
    grid_NHW2 = torch.stack(
        [x_NW[:, None].expand(-1, height, -1), y_NH[..., None].expand(-1, -1, width)], dim=3
    )
    return F.grid_sample(masks_NMM[:, None], grid_NHW2, align_corners=False)[:, 0]
