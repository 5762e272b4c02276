"""Training on BCCD from the weights of shapes: 4 images per step, 51 steps per epoch."""

from .data.bccd import dataloader
from .shapes import lr_multiplier, optimizer, train

NUM_CLASSES = 3

dataloader.train.total_batch_size = train.reference_batch_size = 4
optimizer.lr = 2e-4
train.max_iter = 2400
train.eval_period = 400
train.clip_grad.params.max_norm = 0.1
