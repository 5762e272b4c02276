"""The small DINO of the shapes data set on an SPT as wide and deep as its Swin."""

from spt_backbone import SPT
from spt_backbone.config import use_spt

from ....dino.configs.models.dino_swin_shapes import model

model.backbone._target_ = SPT
use_spt(model, model.backbone)
