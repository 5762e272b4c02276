"""HTML report on runs: settings, curves, errors, images and kept tokens, in one file."""

from tokendetr.report.page import write_page, write_report
from tokendetr.report.run import Run, read_run

__all__ = ["Run", "read_run", "write_page", "write_report"]
