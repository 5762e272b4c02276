"""Bare virtual environments with hand-laid distributions, in seconds and without the network."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

from tests.source_tree import ROOT

KEPT = ("PATH", "OMP_NUM_THREADS", "DETECTRON2_DATASETS")
"""Variables that a started program keeps; the last one saves drawing the data set again."""
WITHOUT_KERNELS = {"TOKENDETR_NO_EXTENSION": "1"}

SCRATCH = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")


def tracked_files(*folders: str) -> list[str]:
    """Return the files of the checkout that git tracks or would add, sorted."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return sorted(name for name in set(listed.split("\0")) if name and (ROOT / name).exists())


def copy_checkout(target: Path) -> Path:
    """Copy the files of an installation: no tests, no documents, no generated files."""
    folders = [path.name for path in ROOT.iterdir() if path.name not in ("tests", "docs")]
    for name in tracked_files(*folders):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():  # a link to a folder, of which an installed package has a copy
            shutil.copytree(ROOT / name, target / name, ignore=SCRATCH)
        else:
            shutil.copyfile(ROOT / name, target / name)
    return target


class Environment:
    """A virtual environment that contains only the wheels unpacked into it."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        self.packages = next(folder.glob("lib/python*/site-packages"))

    def run(self, code: str, *, cwd: Path, path: str = "") -> str:
        """Run code in a fresh interpreter and return its output."""
        done = subprocess.run(
            [self.python, "-c", code],
            cwd=cwd,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr
        return done.stdout.strip()

    def start(self, *arguments: str, cwd: Path) -> str:
        """Run Python as a user would, with little more than the PATH; return stdout."""
        done = subprocess.run(
            [self.python, *arguments],
            cwd=cwd,
            env={name: os.environ[name] for name in KEPT if name in os.environ},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def lay(self, wheel: Path) -> None:
        """Unpack a wheel of pure Python."""
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.packages)

    def share_requirements(self) -> None:
        """Make the running interpreter's packages importable, after those of this environment."""
        shared = sysconfig.get_path("purelib")
        (self.packages / "zz_requirements.pth").write_text(f"{shared}\n")

    def install(self, wheel: Path) -> None:
        """Install a wheel with pip, without its requirements and without the network."""
        command = [sys.executable, "-m", "pip", "--python", self.python, "install"]
        options = ["--no-deps", "--no-index", "--quiet", wheel]
        subprocess.run([*command, *options], check=True, capture_output=True, cwd=wheel.parent)


def build(project: Path, output: Path, kind: str = "wheel", **environment: str) -> Path:
    """Build a distribution with the running interpreter's setuptools.

    Args:
        project: folder with the pyproject.toml.
        output: folder of the result, created if missing.
        kind: "wheel", "editable" or "sdist".
        environment: further environment variables.
    """
    output.mkdir(parents=True, exist_ok=True)
    code = f"import sys\nfrom setuptools.build_meta import build_{kind} as b\nb(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(output)],
        cwd=project,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )
    (built,) = output.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return built


def fake_project(folder: Path, packages: tuple[str, ...]) -> Path:
    """Write a tiny project with packages of these names, laid out as a clone of a real one."""
    for name in packages:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("REAL = True\n")
    listed = ", ".join(f'"{name}"' for name in packages)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "{packages[0]}"\nversion = "9.9"\n'
        f"[tool.setuptools]\npackages = [{listed}]\n"
    )
    return folder
