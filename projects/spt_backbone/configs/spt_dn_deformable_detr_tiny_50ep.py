from .models.run_50ep import dataloader, lr_multiplier, optimizer, train
from .models.spt_dn_deformable_detr_tiny import model

train.output_dir = "./output/spt_dn_deformable_detr_tiny_50ep"
