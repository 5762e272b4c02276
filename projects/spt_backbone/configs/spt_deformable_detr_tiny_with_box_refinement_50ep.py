from .models.run_50ep import dataloader, lr_multiplier, optimizer, train
from .models.spt_deformable_detr_tiny import model

model.with_box_refine = True

train.output_dir = "./output/spt_deformable_detr_tiny_with_box_refinement_50ep"
