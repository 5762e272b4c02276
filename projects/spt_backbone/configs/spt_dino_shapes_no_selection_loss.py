"""The same without the selection loss: what the detection losses alone select."""

from .spt_dino_shapes import dataloader, lr_multiplier, model, optimizer, train

model.backbone.selection_loss_weight = 0.0

train.output_dir = "./output/spt_dino_shapes_no_selection_loss"
