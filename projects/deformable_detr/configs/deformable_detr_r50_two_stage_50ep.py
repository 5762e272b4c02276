from .deformable_detr_r50_with_box_refinement_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.as_two_stage = True

train.output_dir = "./output/deformable_detr_r50_two_stage_50ep"
