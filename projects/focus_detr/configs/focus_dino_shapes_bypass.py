"""Focus-DETR on the small DINO of the shapes data set; left-out tokens take an affine bypass.

Training continues from dense weights or, better, from those that `tokendetr sparsify` wrote.
"""

from tokendetr.config import add_bypass

from .focus_dino_shapes import dataloader, lr_multiplier, model, optimizer, train

add_bypass(model)

train.output_dir = "./output/focus_dino_shapes_bypass"
