"""Reading the golden samples as data: a PNG holds them rounded to whole numbers."""

import torch
from detrex.data import DetrDatasetMapper

from tests.golden import formula


class UnroundedMapper(DetrDatasetMapper):
    """Gives the pixels of the formula back what their file has rounded off.

    With formula weights a detector can be so sensitive that half a gray level exchanges proposals.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        record = super().__call__(dataset_dict)
        exact = formula.image(record["height"], record["width"], record["image_id"])
        assert torch.equal(record["image"], exact.round().byte())
        return record | {"image": exact}
