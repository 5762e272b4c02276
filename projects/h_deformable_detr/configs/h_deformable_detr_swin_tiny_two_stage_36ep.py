from ...common.coco import ITERATIONS_PER_EPOCH
from .h_deformable_detr_r50_two_stage_36ep import lr_multiplier
from .h_deformable_detr_swin_tiny_two_stage_12ep import dataloader, model, optimizer, train

train.output_dir = "./output/h_deformable_detr_swin_tiny_two_stage_36ep"
train.max_iter = 36 * ITERATIONS_PER_EPOCH
dataloader.evaluator.output_dir = train.output_dir
