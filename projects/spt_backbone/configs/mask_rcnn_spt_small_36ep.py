from .models.mask_rcnn import model
from .models.mask_rcnn_run import dataloader, lr_multiplier, optimizer, train
from .models.spt import spt_small as _spt_small

model.backbone.bottom_up.depths = _spt_small.depths

train.init_checkpoint = "/path/to/swin_small_patch4_window7_224.pth?matching_heuristics=True"
train.output_dir = "./output/mask_rcnn_spt_small_36ep"
