"""The paper's preliminary experiment (Table 7) on shapes: a trained detector chooses the tokens.

Both the detector and the one that chooses start from the dense weights.
"""

import copy

from detectron2.config import LazyCall as L

from sparse_detr import AttendedTokens
from tokendetr.config import sparsify

from ...dino.configs.models.dino_shapes import model as _dense
from .sparse_dino_shapes import dataloader, lr_multiplier, optimizer, train

model = copy.deepcopy(_dense)
sparsify(model, L(AttendedTokens)(keep_ratio=0.3, teacher=copy.deepcopy(_dense)))

train.output_dir = "./output/dino_shapes_attended"
