from .dino_focalnet_fl4 import model
from .pyramid import add_first_stage

add_first_stage(model, channels=192)
