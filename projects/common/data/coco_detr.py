"""detrex's COCO 2017 with the augmentations of DETR; result files follow ``train.output_dir``."""

from detrex.config import get_config

dataloader = get_config("common/data/coco_detr.py").dataloader
dataloader.train.num_workers = 16
dataloader.train.total_batch_size = 16  # over all GPUs
dataloader.evaluator.output_dir = "${train.output_dir}"
