from detrex.config import get_config

from ...common.coco import ITERATIONS_PER_EPOCH, dataloader, optimizer, train
from .models.deformable_detr_r50 import model

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_50ep

optimizer.params.lr_factor_func.factors = {
    "backbone": 0.1,
    "reference_points": 0.1,
    "sampling_offsets": 0.1,
}
train.max_iter = 50 * ITERATIONS_PER_EPOCH
train.output_dir = "./output/deformable_detr_r50_50ep"
dataloader.evaluator.output_dir = train.output_dir
model.device = train.device
