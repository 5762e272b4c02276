"""Build of the compiled operators by ``csrc/build``; the metadata is in pyproject.toml."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parent / "csrc" / "build"))
