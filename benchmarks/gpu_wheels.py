"""Collect what benchmarks/gpu_check.py needs on a machine without network: wheels and the tree.

python benchmarks/gpu_wheels.py FOLDER [--python 3.12] [--there FILE] [--bundle FILE]

PyTorch and what it brings are there already, and so is what FILE lists (``pip freeze`` of that
machine); what is published as source alone is built here, if it is pure Python. The bundle is a tar
file of the tracked files, without trained weights and pictures, which the check does not read, and
of the wheels: unpacked there, ``make gpu-check`` does the rest.
"""

import argparse
import re
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")
PACKAGES = (
    "antlr4-python3-runtime",
    "cloudpickle",
    "fvcore",
    "hydra-core",
    "iniconfig",
    "iopath",
    "ninja",
    "omegaconf",
    "packaging",
    "pillow",
    "pluggy",
    "portalocker",
    "pycocotools",
    "pygments",
    "pytest",
    "pytest-timeout",
    "pyyaml",
    "safetensors",
    "scipy",
    "tabulate",
    "termcolor",
    "tqdm",
    "yacs",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


NOT_READ = ("projects/*/checkpoints/*", "docs/images/*")


def names_of(frozen: str) -> set[str]:
    """Return the packages that ``pip freeze`` or ``pip list --format=freeze`` printed."""
    lines = (re.match(r"[\w.-]+", line) for line in frozen.splitlines())
    return {re.sub(r"[-_.]+", "-", found[0]).lower() for found in lines if found}


def pinned(there: set[str]) -> list[str]:
    """Return what is not there, with the releases that the project's requirements lock."""
    text = "\n".join((ROOT / name).read_text() for name in REQUIREMENTS)
    locked = {
        name.lower().replace("_", "-"): f"{name}=={release}"
        for name, release in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    }
    return [locked.get(name, name) for name in PACKAGES if name not in there]


def pip(*words: str) -> bool:
    """Run pip and return whether it succeeded."""
    command = [sys.executable, "-m", "pip", *words, "--quiet", "--no-deps"]
    return subprocess.run(command).returncode == 0


def collect(package: str, folder: Path, python: str) -> None:
    """Fetch a package's wheel for the other machine, or build it if it is pure Python."""
    tags = [word for name in PLATFORMS for word in ("--platform", name)]
    target = ["--python-version", python, "--implementation", "cp", *tags]
    if pip("download", package, "--only-binary=:all:", *target, "--dest", str(folder)):
        return
    before = set(folder.iterdir())
    if not pip("wheel", package, "--wheel-dir", str(folder)):
        sys.exit(f"no wheel of {package}")
    for path in set(folder.iterdir()) - before:
        if not path.name.endswith("-none-any.whl"):
            path.unlink()
            sys.exit(f"{package} is published as source alone and is not pure Python")


def bundled() -> list[Path]:
    """Return the tracked files that the check may read."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    paths = [Path(name) for name in listed.split("\0") if name]
    return [path for path in paths if not any(map(path.match, NOT_READ)) and (ROOT / path).exists()]


def write_bundle(target: Path, wheels: Path) -> None:
    """Write the tar file; wheels are where ``make gpu-check`` looks for them."""
    with tarfile.open(target, "w") as archive:
        for path in bundled():
            archive.add(ROOT / path, path.as_posix())
        for path in sorted(wheels.glob("*.whl")):
            archive.add(path, f"build/gpu-wheels/{path.name}")


def mib(paths: list[Path]) -> float:
    """Return the size of files in MiB."""
    return sum(path.stat().st_size for path in paths) / 2**20


def main() -> None:
    """Collect all wheels, write the bundle and check the size of both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="release on the other machine")
    parser.add_argument("--there", type=Path, help="what the other machine's pip freeze printed")
    parser.add_argument("--bundle", type=Path, help="tar file of wheels and tree")
    parser.add_argument("--most-mib", type=float, default=60, help="fail if the whole is larger")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for path in options.folder.glob("*.whl"):
        path.unlink()  # of another release or machine
    for package in pinned(names_of(options.there.read_text()) if options.there else set()):
        collect(package, options.folder, options.python)
    wheels = sorted(options.folder.glob("*.whl"))
    whole = mib(wheels)
    print(f"{len(wheels)} wheels, {whole:.1f} MiB")
    if options.bundle:
        options.bundle.parent.mkdir(parents=True, exist_ok=True)
        write_bundle(options.bundle, options.folder)
        whole = mib([options.bundle])
        print(f"{options.bundle}: {whole:.1f} MiB")
    if whole > options.most_mib:
        sys.exit(f"more than {options.most_mib} MiB")


if __name__ == "__main__":
    main()
