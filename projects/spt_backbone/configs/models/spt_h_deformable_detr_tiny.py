from spt_backbone.config import use_spt

from ....h_deformable_detr.configs.models.h_deformable_detr_r50 import model
from .spt import spt_tiny

use_spt(model, spt_tiny)
