"""Small encoders with Dynamic DETR, and batches of unequal images for them."""

from dynamic_detr import DynamicSparsifier
from tests.plain_encoder import make_encoder
from tokendetr.encoder import TokenEncoder

SIZES = [(16, 21), (9, 10), (16, 7)]
OPTIONS = {"keep_ratios": (0.6, 0.5, 0.4, 0.3), "window_sizes": (4, 2, 2), "alignment": "off"}


def dynamic_encoder(**options) -> TokenEncoder:
    return make_encoder(DynamicSparsifier(**{**OPTIONS, **options}), num_layers=6)
