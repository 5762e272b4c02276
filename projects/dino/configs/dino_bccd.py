"""DINO on photographs of blood cells (docs/real_data.md), fine-tuned from the weights of shapes."""

from tokendetr.config import checkpoint_file

from ...common.bccd import NUM_CLASSES, dataloader, lr_multiplier, optimizer, train
from .models.dino_shapes import model

model.num_classes = NUM_CLASSES
train.init_checkpoint = checkpoint_file("dino_shapes")
train.output_dir = "./output/dino_bccd"
