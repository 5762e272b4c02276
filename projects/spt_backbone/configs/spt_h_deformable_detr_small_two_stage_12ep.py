from .models.run_12ep import dataloader, lr_multiplier, optimizer, train
from .models.spt_h_deformable_detr_small import model

model.as_two_stage = True
model.with_box_refine = True

train.init_checkpoint = "/path/to/swin_small_patch4_window7_224.pth?matching_heuristics=True"
train.output_dir = "./output/spt_h_deformable_detr_small_two_stage_12ep"
