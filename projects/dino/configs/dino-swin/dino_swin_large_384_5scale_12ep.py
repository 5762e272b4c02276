from detectron2.layers import ShapeSpec

from .dino_swin_large_384_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.out_indices = (0, 1, 2, 3)
model.neck.input_shapes["p0"] = ShapeSpec(channels=192)
model.neck.in_features = ["p0", "p1", "p2", "p3"]
model.neck.num_outs = 5
model.transformer.num_feature_levels = 5

train.output_dir = "./output/dino_swin_large_384_5scale_12ep"
dataloader.evaluator.output_dir = train.output_dir
