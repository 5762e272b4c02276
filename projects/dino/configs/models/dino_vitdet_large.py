"""DINO on ViTDet-L, in which every sixth block attends to the whole image."""

from .dino_vitdet import model

vit = model.backbone.net
vit.embed_dim = 1024
vit.depth = 24
vit.num_heads = 16
vit.drop_path_rate = 0.4
vit.window_block_indexes = [index for index in range(24) if index % 6 != 5]
