"""DINO on FocalNet-L with four focal levels."""

from .dino_focalnet import model

model.backbone.focal_levels = (4, 4, 4, 4)
model.backbone.focal_windows = (3, 3, 3, 3)
