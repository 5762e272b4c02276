from tokendetr.config import sparsify

from ....dino.configs.models.dino_swin_large_384 import model
from .focus_sparsifier import sparsifier

sparsify(model, sparsifier)
