from .models.sparse_deformable_detr_swin_tiny import model
from .sparse_deformable_detr_r50_50ep import dataloader, lr_multiplier, optimizer, train

train.init_checkpoint = "/path/to/swin_tiny_patch4_window7_224.pth"
train.output_dir = "./output/sparse_deformable_detr_swin_tiny_50ep"
