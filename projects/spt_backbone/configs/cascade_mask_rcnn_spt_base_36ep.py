from .models.cascade_mask_rcnn import model
from .models.mask_rcnn_run import dataloader, lr_multiplier, optimizer, train

train.init_checkpoint = "/path/to/swin_base_patch4_window7_224.pth?matching_heuristics=True"
train.output_dir = "./output/cascade_mask_rcnn_spt_base_36ep"
