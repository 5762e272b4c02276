from .dino_r50_5scale_12ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.freeze_at = -1

train.output_dir = "./output/dino_r50_5scale_12ep_no_frozen"
