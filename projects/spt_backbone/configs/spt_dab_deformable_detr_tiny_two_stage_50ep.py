from .models.run_50ep import dataloader, lr_multiplier, optimizer, train
from .models.spt_dab_deformable_detr_tiny import model

model.as_two_stage = True

train.output_dir = "./output/spt_dab_deformable_detr_tiny_two_stage_50ep"
