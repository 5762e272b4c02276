from .models.sparse_deformable_detr_swin_base import model
from .sparse_deformable_detr_r50_50ep import dataloader, lr_multiplier, optimizer, train

train.init_checkpoint = "/path/to/swin_base_patch4_window12_384_22kto1k.pth"
train.output_dir = "./output/sparse_deformable_detr_swin_base_50ep"
