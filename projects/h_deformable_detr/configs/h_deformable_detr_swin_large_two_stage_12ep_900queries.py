from .h_deformable_detr_swin_large_two_stage_12ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.num_queries_one2one = 900
model.transformer.two_stage_num_proposals = 2400

train.output_dir = "./output/h_deformable_detr_swin_large_two_stage_12ep_900queries"
