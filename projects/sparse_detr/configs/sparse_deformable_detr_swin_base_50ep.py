from .models.sparse_deformable_detr_swin_base import model
from .sparse_deformable_detr_r50_50ep import dataloader, lr_multiplier, optimizer, train

model.device = train.device
train.init_checkpoint = "/path/to/swin_base_patch4_window12_384_22kto1k.pth"
train.output_dir = "./output/sparse_deformable_detr_swin_base_50ep"
dataloader.evaluator.output_dir = train.output_dir
