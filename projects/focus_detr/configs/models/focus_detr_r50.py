from tokendetr.config import sparsify

from ....dino.configs.models.dino_r50 import model
from .focus_sparsifier import sparsifier

sparsify(model, sparsifier)
