"""Training on COCO with SPT: data, optimiser and run settings of the detectors."""

from spt_backbone.config import watch_selection

from ....common.coco import ITERATIONS_PER_EPOCH, dataloader, optimizer, train

watch_selection(dataloader.evaluator)
# The first name that fits decides: gates are new and learn like the detector.
optimizer.params.lr_factor_func.factors = {"gate": 1.0, "backbone": 0.1}
train.init_checkpoint = "/path/to/swin_tiny_patch4_window7_224.pth?matching_heuristics=True"
