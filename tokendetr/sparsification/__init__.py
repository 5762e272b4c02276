"""Make a trained detector sparse in minutes, without labels.

If the encoder of a trained detector simply skips most tokens, it loses most of its accuracy: the
skipped tokens stay unchanged, and no score tells which tokens to keep. Here an affine bypass
(:mod:`tokendetr.encoder.bypass`), fitted by least squares, replaces the skipped updates, and a
score head learns which tokens the dense decoder attends to. Both need images, but no labels.
"""

from tokendetr.analysis.keep_ratio_search import keep_ratio_within
from tokendetr.errors import FewImagesError, NotSparsifiableError, StaleFitError, TooSlowError
from tokendetr.sparsification.distillation import TARGETS, Targets
from tokendetr.sparsification.fitting import FitOptions, FitResult, fit
from tokendetr.sparsification.images import UnlabeledImages
from tokendetr.sparsification.job import SparsifyJob, run_job
from tokendetr.sparsification.recipe import (
    BUDGETS,
    METHODS,
    Budget,
    Method,
    sparse_config,
    sparse_model,
)
from tokendetr.sparsification.report import Row, SparsificationReport, agreement, compare
from tokendetr.sparsification.teacher import DensePass, DenseTeacher

__all__ = [
    "BUDGETS",
    "METHODS",
    "TARGETS",
    "Budget",
    "DensePass",
    "DenseTeacher",
    "FewImagesError",
    "FitOptions",
    "FitResult",
    "Method",
    "NotSparsifiableError",
    "Row",
    "SparsificationReport",
    "SparsifyJob",
    "StaleFitError",
    "Targets",
    "TooSlowError",
    "UnlabeledImages",
    "agreement",
    "compare",
    "fit",
    "keep_ratio_within",
    "run_job",
    "sparse_config",
    "sparse_model",
]
