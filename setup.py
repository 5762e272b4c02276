"""Build of the distribution: the operators' library by csrc/build, metadata in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import setup

BUILD = runpy.run_path(str(Path(__file__).resolve().parent / "csrc" / "build"))

setup(**BUILD["options"]())
