"""Dynamic DETR on the small DINO of the shapes data set, fine-tuned from its dense weights."""

from detectron2.config import LazyCall as L

from dynamic_detr import DynamicSparsifier
from tokendetr.config import checkpoint_file, sparsify

from ...dino.configs.dino_shapes import dataloader, lr_multiplier, model, optimizer, train

# Three encoder layers, a stage each. Windows are half the usual ones: the images are a quarter of
# COCO's size, and a window should stay smaller than the objects. For the same reason there is less
# to merge, and the ratios are those of the upper half of the paper's Table 6.
sparsify(
    model,
    L(DynamicSparsifier)(
        keep_ratios=(0.7, 0.6, 0.5, 0.4),
        level_orders=((1, 2, 3, 4), (3, 2, 4, 1), (4, 3, 2, 1)),
        stage_lengths=(1, 1, 1),
        window_sizes=(4, 2, 2),
    ),
)

train.init_checkpoint = checkpoint_file("dino_shapes")
train.output_dir = "./output/dynamic_dino_shapes"
train.max_iter = 1200
train.eval_period = 600

optimizer.lr = 2e-4
train.clip_grad.params.max_norm = 0.1
