"""A mapper for the golden samples, whose PNG files are rounded to integers."""

import torch
from detrex.data import DetrDatasetMapper

from tests.golden import formula


class UnroundedMapper(DetrDatasetMapper):
    """Replace the pixels of a file by the unrounded ones of the formula.

    With formula weights a detector can be so sensitive that half a gray level exchanges proposals.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        record = super().__call__(dataset_dict)
        exact = formula.image(record["height"], record["width"], record["image_id"])
        assert torch.equal(record["image"], exact.round().byte())
        return record | {"image": exact}
