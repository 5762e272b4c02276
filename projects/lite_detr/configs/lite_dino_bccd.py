"""Lite DETR on photographs of blood cells, fine-tuned from the dense weights of BCCD."""

from tokendetr.config import checkpoint_file

from ...common.bccd import NUM_CLASSES, dataloader, train
from .lite_dino_shapes import lr_multiplier, model, optimizer

model.num_classes = NUM_CLASSES
train.init_checkpoint = checkpoint_file("dino_bccd")
train.init_checkpoint_strict = False  # the narrow networks are new
train.output_dir = "./output/lite_dino_bccd"
train.max_iter, train.eval_period = 800, 200
