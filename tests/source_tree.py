"""The checkout: its methods, detectors and Python files."""

from pathlib import Path

from tokendetr._projects import methods

ROOT = Path(__file__).resolve().parent.parent
METHODS = tuple(methods())


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def detectors() -> list[str]:
    return sorted(path.parent.name for path in (ROOT / "tokendetr/models").glob("*/__init__.py"))
