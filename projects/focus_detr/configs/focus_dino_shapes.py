"""Focus-DETR on the small DINO of the shapes data set, fine-tuned from its dense weights."""

from tokendetr.config import checkpoint_file, sparsify

from ...dino.configs.dino_shapes import dataloader, lr_multiplier, model, optimizer, train
from .models.focus_sparsifier import sparsifier as _sparsifier

sparsify(model, _sparsifier)
# An image has about 1,000 tokens, of which 136 and less reach the last of three layers: fewer
# objects than the 300 of COCO's 18,000 tokens.
model.transformer.encoder.sparsifier.num_objects = 60

train.init_checkpoint = checkpoint_file("dino_shapes")
train.init_checkpoint_strict = False  # the selector and the dual attention start anew
train.output_dir = "./output/focus_dino_shapes"
train.max_iter = 1200
train.eval_period = 600

optimizer.lr = 2e-4
train.clip_grad.params.max_norm = 0.1
