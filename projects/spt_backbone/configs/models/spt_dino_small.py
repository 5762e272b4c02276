from spt_backbone.config import use_spt

from ....dino.configs.models.dino_r50 import model
from .spt import spt_small

use_spt(model, spt_small)
