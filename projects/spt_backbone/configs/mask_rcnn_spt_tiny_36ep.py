from .models.mask_rcnn import model
from .models.mask_rcnn_run import dataloader, lr_multiplier, optimizer, train

train.output_dir = "./output/mask_rcnn_spt_tiny_36ep"
