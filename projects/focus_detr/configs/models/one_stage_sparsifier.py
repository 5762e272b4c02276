"""For detectors without proposals: the sparsifier brings a projection and heads of its own."""

from .focus_sparsifier import sparsifier

sparsifier.num_classes = "${....num_classes}"
