from detectron2.layers import ShapeSpec

from .dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.neck.input_shapes["res2"] = ShapeSpec(channels=256)
model.neck.in_features = ["res2", "res3", "res4", "res5"]
model.neck.num_outs = 5
model.transformer.num_feature_levels = 5

train.output_dir = "./output/dino_r50_5scale_12ep"
