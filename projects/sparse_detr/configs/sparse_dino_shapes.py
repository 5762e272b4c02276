"""Sparse DETR on the small DINO of the shapes data set, fine-tuned from its dense weights."""

from tokendetr.config import checkpoint_file, sparsify

from ...dino.configs.dino_shapes import dataloader, lr_multiplier, model, optimizer, train
from .models.sparse_sparsifier import sparsifier as _sparsifier

sparsify(model, _sparsifier)

train.init_checkpoint = checkpoint_file("dino_shapes")
train.init_checkpoint_strict = False  # the score head and the encoder's heads are new
train.output_dir = "./output/sparse_dino_shapes"
train.max_iter = 1200
train.eval_period = 600

optimizer.lr = 2e-4
train.clip_grad.params.max_norm = 0.1
