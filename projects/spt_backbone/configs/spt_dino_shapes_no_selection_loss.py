"""spt_dino_shapes without the selection loss: gates learn from the detection losses alone."""

from .spt_dino_shapes import dataloader, lr_multiplier, model, optimizer, train

model.backbone.selection_loss_weight = 0.0

train.output_dir = "./output/spt_dino_shapes_no_selection_loss"
