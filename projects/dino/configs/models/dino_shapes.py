from ....common.shapes import fit
from .dino_r50 import model

fit(model)
model.num_queries = 100
model.dn_number = 30
model.label_noise_ratio = 0.2
