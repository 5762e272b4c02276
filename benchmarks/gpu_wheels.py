"""Collect the wheels that benchmarks/gpu_check.py needs on a machine without network.

python benchmarks/gpu_wheels.py FOLDER [--python 3.12] [--most-mib 49]

PyTorch and what it brings are there already; what is published as source alone is built here, if
it is pure Python.
"""

import argparse
import re
import subprocess
import sys
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


def pinned() -> list[str]:
    """Return the packages with the releases that the project's requirements lock."""
    text = "\n".join((ROOT / name).read_text() for name in REQUIREMENTS)
    locked = {
        name.lower().replace("_", "-"): f"{name}=={release}"
        for name, release in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    }
    return [locked.get(name, name) for name in PACKAGES]


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


def main() -> None:
    """Collect all wheels and check their size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="release on the other machine")
    parser.add_argument("--most-mib", type=float, default=49, help="fail if they are larger")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for package in pinned():
        collect(package, options.folder, options.python)
    mib = sum(path.stat().st_size for path in options.folder.glob("*.whl")) / 2**20
    print(f"{len(list(options.folder.glob('*.whl')))} wheels, {mib:.1f} MiB")
    if mib > options.most_mib:
        sys.exit(f"more than {options.most_mib} MiB")


if __name__ == "__main__":
    main()
