"""DINO Swin-L (5 scales) with Hourglass's token clustering in place of Token Transforming."""

from .dino_swin_large_384_5scale_36ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.token_transform.method = "clustering"
train.output_dir = "./output/token_transforming_hourglass_dino_swin_large_384_5scale_36ep"
