"""Mutated annotations, damaged pictures and hostile file names."""

from tests.reliability.campaign import row
from tests.reliability.hostile_data import hostile_names, mutated_annotations, mutated_pictures

row(
    "DA1",
    "annotations with one or two mutations: the check against loading, an epoch and evaluations",
    target="the check accepts exactly what works; typed errors; 30 to 70 % accepted",
    default=1,
    nightly=50,
    unit="mutants",
)(mutated_annotations)
row(
    "DA2",
    "pictures of every mode and EXIF turn, sound and damaged: the check against the loader",
    target="read alike in their own range, or an error that names the file",
    default=1,
    nightly=5,
    unit="pictures",
)(mutated_pictures)
row(
    "DA4",
    "file names that lead out of the image folder, or to what is no picture",
    target="all refused",
    default=1,
    nightly=1,
    unit="names",
)(hostile_names)
