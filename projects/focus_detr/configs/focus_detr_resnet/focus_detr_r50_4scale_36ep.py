"""The config of 24 epochs, with 12 more at the lower learning rate."""

from .focus_detr_r50_4scale_24ep import dataloader, lr_multiplier, model, optimizer, train

lr_multiplier.scheduler.milestones[-1] = train.max_iter = 36 * 7500

train.output_dir = "./output/focus_detr_r50_4scale_36ep"
