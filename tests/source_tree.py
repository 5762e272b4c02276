"""The checkout: its methods, detectors and Python files."""

from pathlib import Path

from tokendetr.cli.code_figures import METHODS as METHODS

ROOT = Path(__file__).resolve().parent.parent


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def detectors() -> list[str]:
    return sorted(path.parent.name for path in (ROOT / "tokendetr/models").glob("*/__init__.py"))
