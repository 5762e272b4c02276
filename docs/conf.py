"""The documentation site: ``make docs``.

The source folder is the repository itself, so that the pages' links among ``docs/``, ``projects/``
and the top level are the same here as in a checkout. Nothing is fetched from the network.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_sphinx")]

project = "tokendetr"
author = "the tokendetr contributors"
copyright = author
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "docs/**.md",
    "examples/*.ipynb",
    "projects/**/README.md",
    "standalone/README.md",
]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "api_pages",
    "folder_links",
    "other_pages",
]

html_theme = "furo"
html_title = "tokendetr"
html_additional_pages = {"index": "moved.html"}
templates_path = ["_sphinx/templates"]

myst_heading_anchors = 4
# Projects' READMEs start with a heading of the second level, as detrex's do. A class may be
# exported by two packages.
suppress_warnings = ["myst.header", "toc.not_included", "ref.python"]
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
