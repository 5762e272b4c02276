from detrex.config import get_config

from .models.run import ITERATIONS_PER_EPOCH, dataloader, optimizer, train
from .models.spt_deformable_detr_tiny import model

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_50ep
optimizer.params.lr_factor_func.factors.update(reference_points=0.1, sampling_offsets=0.1)
model.with_box_refine = True
model.device = train.device
train.max_iter = 50 * ITERATIONS_PER_EPOCH
train.init_checkpoint = "/path/to/swin_tiny_patch4_window7_224.pth?matching_heuristics=True"
train.output_dir = "./output/spt_deformable_detr_tiny_with_box_refinement_50ep"
dataloader.evaluator.output_dir = train.output_dir
