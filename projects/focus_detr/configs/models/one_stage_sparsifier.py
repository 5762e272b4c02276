"""Focus-DETR's sparsifier for detectors without proposals: it has its own projection and heads."""

from .focus_sparsifier import sparsifier

sparsifier.num_classes = "${....num_classes}"
