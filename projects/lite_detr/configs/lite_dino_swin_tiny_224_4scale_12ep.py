from .lite_dino_r50_4scale_12ep import dataloader, lr_multiplier, optimizer, train
from .models.lite_dino_swin_tiny_224 import model

model.device = train.device
train.init_checkpoint = "/path/to/swin_tiny_patch4_window7_224.pth"
train.output_dir = "./output/lite_dino_swin_tiny_224_4scale_12ep"
dataloader.evaluator.output_dir = train.output_dir
