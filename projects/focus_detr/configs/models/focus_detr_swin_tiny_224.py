from tokendetr.config import sparsify

from ....dino.configs.models.dino_swin_tiny_224 import model
from .focus_sparsifier import sparsifier

sparsify(model, sparsifier)
