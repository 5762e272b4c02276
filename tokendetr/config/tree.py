"""Where this project's configs, weights and documents are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Root of the project."""

PROJECTS_DIR = ROOT / "projects"
"""Folder of the projects: configs, checkpoints and READMEs, one folder per detector and method."""
