from .models.run_12ep import dataloader, lr_multiplier, optimizer, train
from .models.spt_dino_small import model

train.init_checkpoint = "/path/to/swin_small_patch4_window7_224.pth?matching_heuristics=True"
train.output_dir = "./output/spt_dino_small_4scale_12ep"
