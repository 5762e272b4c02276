"""SPT-B under detectron2's Cascade Mask R-CNN: the heads are detectron2's own config."""

from tokendetr.config import detectron2_model

from .mask_rcnn import model
from .spt import spt_base

model.roi_heads = detectron2_model("common/models/cascade_rcnn.py").roi_heads
for name in ("embed_dim", "depths", "num_heads", "drop_path_rate"):
    model.backbone.bottom_up[name] = spt_base[name]
