"""Unlabeled images are known by their files."""

import os
from pathlib import Path

import torch
from PIL import Image

from tokendetr.predict import Predictor
from tokendetr.sparsification import UnlabeledImages


def test_files_are_told_apart_by_names_of_any_bytes(tmp_path):
    """A fit goes on only with the files that it began with."""
    files = [Path(os.fsdecode(bytes(tmp_path) + b"/%c.png" % n)) for n in (97, 98, 99, 255)]
    for path in files:
        Image.new("RGB", (8, 8)).save(path)
    inputs = Predictor(torch.nn.Identity())
    first = UnlabeledImages(files, inputs).digest()
    renamed = files[-1].rename(os.fsdecode(bytes(tmp_path) + b"/\xfe.png"))
    assert UnlabeledImages([*files[:3], renamed], inputs).digest() != first
