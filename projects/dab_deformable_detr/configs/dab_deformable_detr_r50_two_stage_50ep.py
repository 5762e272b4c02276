from .dab_deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.as_two_stage = True

train.output_dir = "./output/dab_deformable_detr_r50_two_stage_50ep"
