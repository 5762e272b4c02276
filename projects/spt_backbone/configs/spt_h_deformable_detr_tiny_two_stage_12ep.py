from .models.run_12ep import dataloader, lr_multiplier, optimizer, train
from .models.spt_h_deformable_detr_tiny import model

model.as_two_stage = True
model.with_box_refine = True

train.output_dir = "./output/spt_h_deformable_detr_tiny_two_stage_12ep"
