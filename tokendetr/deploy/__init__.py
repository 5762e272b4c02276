"""Export detectors for use outside of Python, and verify that a file computes the same."""

from tokendetr.deploy.entry import DeployedDetector, FixedDetections, RawPredictions
from tokendetr.deploy.files import ExportOptions, check, export
from tokendetr.deploy.proof import ExportedModel
from tokendetr.deploy.runtimes import open_exported

__all__ = [
    "DeployedDetector",
    "ExportOptions",
    "ExportedModel",
    "FixedDetections",
    "RawPredictions",
    "check",
    "export",
    "open_exported",
]
