"""One page about runs: settings, curves, errors, images and kept tokens, as a file of its own."""

from tokendetr.report.page import write_page, write_report
from tokendetr.report.run import Run, read_run

__all__ = ["Run", "read_run", "write_page", "write_report"]
