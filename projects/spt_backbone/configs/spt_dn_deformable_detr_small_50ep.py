from .models.run_50ep import dataloader, lr_multiplier, optimizer, train
from .models.spt_dn_deformable_detr_small import model

train.init_checkpoint = "/path/to/swin_small_patch4_window7_224.pth?matching_heuristics=True"
train.output_dir = "./output/spt_dn_deformable_detr_small_50ep"
