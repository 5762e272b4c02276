"""Make a trained detector sparse in minutes, without labels.

An encoder that updates a share of its tokens alone loses most of a dense detector's accuracy,
because the other tokens stand still and nobody taught it which to keep. Here, the tokens left out
move by an affine bypass (:mod:`tokendetr.encoder.bypass`) fitted by least squares, and a score head
learns which tokens the dense decoder looks at; both need images, but no labels.
"""

from tokendetr.analysis.dial import TooSlowError, keep_ratio_within
from tokendetr.errors import NotSparsifiableError
from tokendetr.sparsification.fitting import FitOptions, FitResult, StaleFitError, fit
from tokendetr.sparsification.images import FewImagesError, UnlabelledImages
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
    "TooSlowError",
    "UnlabelledImages",
    "agreement",
    "compare",
    "fit",
    "keep_ratio_within",
    "run_job",
    "sparse_config",
    "sparse_model",
]
