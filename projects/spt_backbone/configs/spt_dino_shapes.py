"""SPT under DINO on the shapes data set, fine-tuned from the dense narrow Swin."""

from ...dino.configs.dino_shapes import dataloader, lr_multiplier, optimizer, train
from .models.spt_dino_shapes import model

model.device = train.device
train.init_checkpoint = "output/dino_shapes_swin/model_final.pth"
train.init_checkpoint_strict = False  # the gates are new
train.output_dir = "./output/spt_dino_shapes"
dataloader.evaluator.output_dir = train.output_dir
