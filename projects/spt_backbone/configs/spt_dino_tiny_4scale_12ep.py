from .models.run_12ep import dataloader, lr_multiplier, optimizer, train
from .models.spt_dino_tiny import model

train.output_dir = "./output/spt_dino_tiny_4scale_12ep"
