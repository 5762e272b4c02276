from detectron2.config import LazyCall as L

from tokendetr.detector import decay_by_depth

from ....common.coco_12ep import dataloader, lr_multiplier, optimizer, train
from ..models.dino_eva_01 import model

# Earlier blocks learn more slowly; the layer norms decay like other weights.
optimizer.params.lr_factor_func = L(decay_by_depth)(rate=0.9, depth=model.backbone.net.depth)
optimizer.params.weight_decay_norm = None

train.init_checkpoint = "/path/to/eva_o365.pth"
train.output_dir = "./output/dino_eva_01_4scale_12ep"
