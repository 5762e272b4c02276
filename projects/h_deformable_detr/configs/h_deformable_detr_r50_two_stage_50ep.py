from .h_deformable_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.as_two_stage = True
model.with_box_refine = True

train.output_dir = "./output/h_deformable_detr_r50_two_stage_50ep"
dataloader.evaluator.output_dir = train.output_dir
