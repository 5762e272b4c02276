"""Export detectors for use outside of Python, and verify that a file computes the same."""

from tokendetr.deploy.entry import DeployedDetector, FixedDetections, RawPredictions
from tokendetr.deploy.files import ExportOptions, check, export
from tokendetr.deploy.runtimes import open_exported
from tokendetr.deploy.verification import ExportedModel

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
