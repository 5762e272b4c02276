"""SPT under detectron2's Mask R-CNN; the model itself is detectron2's own config."""

from tokendetr.config import detectron2_model, observed

from .spt import spt_tiny

model = detectron2_model("common/models/mask_rcnn_fpn.py")
model.backbone.bottom_up = spt_tiny
model.backbone.bottom_up.out_indices = (0, 1, 2, 3)
model.backbone.bottom_up.drop_path_rate = 0.2
model.backbone.bottom_up.selection_labels = "masks"
model.backbone.in_features = ("p0", "p1", "p2", "p3")
# Swin's ImageNet weights are for RGB images on this scale.
model.pixel_mean = [123.675, 116.28, 103.53]
model.pixel_std = [58.395, 57.12, 57.375]
model.input_format = "RGB"
observed(model)
