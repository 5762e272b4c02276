from .dino_swin_large_384 import model
from .pyramid import add_first_stage

add_first_stage(model, channels=192)
