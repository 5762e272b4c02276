"""Run the whole suite, and the flows of this folder, beside the real detectron2 and detrex.

    python -m tests.upstream --detectron2 CHECKOUT --detrex CHECKOUT [--venv FOLDER] [PYTEST ...]

Makes a virtual environment from two source checkouts (kept for the next run), installs this
project's wheel there without the stand-ins, and runs the tests in a folder that has everything of
this checkout but its packages, so that the installed ones are tested. Each folder of tests is a
pytest run of its own, so that ``--resume`` can go on after an interruption. The last line has the
counts. Needs nothing but Python's standard library.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.upstream.reports import added, counts_of, line_of, record
from tokendetr._projects import methods

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "upstream"
REPORTS = WORK / "reports"
LEFT_OUT = {
    "tokendetr",
    *methods(),
    "standalone",
    "projects",
    "build",
    "output",
    "tokendetr.pth",
    "tokendetr_startup.py",
    "setup.py",
}
# detrex imports pkg_resources, which later setuptools do not have; both build with torch at hand.
BUILD_TOOLS = ("setuptools<82", "wheel", "ninja")
LIBRARIES = ("timm", "fairscale", "einops", "wandb", "lvis", "shapely", "submitit")
LIBRARIES += ("opencv-python-headless",)
# Found, not imported: detrex's import fails without libraries that are installed only after this.
HAS_BOTH = "from importlib.metadata import version; version('detectron2'); version('detrex')"
CHANGED = ", changed"  # behind the commit of a checkout that is not as committed
SELECTING = ("-k", "-m", "--deselect", "--lf", "--last-failed")  # of pytest's arguments
NO_TESTS = 5  # pytest's exit status where a folder has none of those that were asked for


def run(command: Sequence[object], **options: object) -> int:
    """Run a program, its command printed, and return its exit status."""
    words = [str(word) for word in command]
    print("+", *words, flush=True)
    return subprocess.run(words, **options).returncode  # type: ignore[call-overload]


def install(python: Path, *arguments: object) -> None:
    """Install packages into the environment.

    Raises:
        SystemExit: pip failed; its message is on the screen.
    """
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if run([*pip, *arguments], cwd=ROOT):
        sys.exit(f"could not install {' '.join(map(str, arguments))}")


def requirements(name: str) -> list[str]:
    """The pinned packages of a file, without those that detrex needs in older versions."""
    lines = [line.strip() for line in (ROOT / name).read_text().splitlines()]
    names = [line for line in lines if line and not line.startswith(("#", "-"))]
    return [line for line in names if not line.startswith(("setuptools", "wheel", "ninja"))]


def environment(folder: Path, torch: Sequence[str], checkouts: Sequence[Path]) -> Path:
    """Return the interpreter of an environment with detectron2 and detrex, made if need be.

    One that has both is used; it gets the libraries that it lacks, and keeps its versions.
    """
    python = folder / "bin" / "python"
    libraries = [*LIBRARIES, *requirements("requirements.in"), *requirements("requirements-dev.in")]
    if python.exists() and not run([python, "-c", HAS_BOTH], cwd=folder):
        install(python, *(line.partition("==")[0] for line in libraries))
        return python
    venv.create(folder, with_pip=True)
    install(python, *BUILD_TOOLS)
    install(python, *torch)
    install(python, *libraries)
    for checkout in checkouts:
        install(python, "--no-build-isolation", checkout)
    return python


def install_project(python: Path) -> None:
    """Build this checkout's wheel and install it, without what it depends on."""
    for old in WORK.glob("*.whl"):
        old.unlink()
    build = [python, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    if run([*build, "--wheel-dir", WORK, ROOT], cwd=ROOT):
        sys.exit("the project's wheel could not be built")
    install(python, "--no-deps", "--force-reinstall", *WORK.glob("*.whl"))


def prepared(folder: Path, torch: Sequence[str], checkouts: Sequence[Path]) -> Path:
    """Return the interpreter of an environment that has everything.

    Nothing is done if this commit, unchanged, is installed there already.
    """
    state, stamp = state_of(ROOT), folder / "tokendetr-installed"
    if not stamp.is_file() or stamp.read_text() != state or CHANGED in state:
        stamp.unlink(missing_ok=True)
        install_project(environment(folder, torch, checkouts))
        stamp.write_text(state)
    return folder / "bin" / "python"


def working_folder() -> Path:
    """Return a folder with links to all of this checkout but its packages."""
    folder = WORK / "checkout"
    folder.mkdir(parents=True, exist_ok=True)
    for link in folder.iterdir():
        if link.is_symlink():
            link.unlink()
    for path in ROOT.iterdir():
        if path.name not in LEFT_OUT and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    return folder


def pieces_of(tests: Path) -> dict[str, list[str]]:
    """The folders of tests, each with its test files as the working folder names them."""
    found: dict[str, list[str]] = {}
    for path in sorted(tests.rglob("test_*.py")):
        place = path.relative_to(tests.parent)
        found.setdefault(place.parent.as_posix(), []).append(place.as_posix())
    return found


def run_piece(
    python: Path, name: str, options: Sequence[str], variables: dict[str, str]
) -> dict[str, Any]:
    """Test one folder and return its counts, which are kept.

    Raises:
        SystemExit: pytest itself failed.
    """
    kept = REPORTS / f"{name.replace('/', '.')}.json"
    report = kept.with_suffix(".xml")
    for old in (kept, report):
        old.unlink(missing_ok=True)
    pytest = [python, "-m", "pytest", "--junitxml", report, *options]
    status = run([*pytest, *pieces_of(ROOT / "tests")[name]], cwd=working_folder(), env=variables)
    if status not in (0, 1, NO_TESTS):
        sys.exit(f"pytest ended with {status} in {name}; --resume goes on there")
    counts = {"tested": state_of(ROOT), **counts_of(report)}
    kept.write_text(json.dumps(counts))
    return counts


def passed_before(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The counts of the folders that passed here before, at whatever commit that was."""
    files = {name: REPORTS / f"{name.replace('/', '.')}.json" for name in names}
    found = {name: json.loads(f.read_text()) for name, f in files.items() if f.is_file()}
    return {name: counts for name, counts in found.items() if not counts["failures"]}


def state_of(checkout: Path) -> str:
    """The commit of a checkout, and whether it was changed; the records of runs are no change."""
    git = ["git", "-C", str(checkout)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changes = [*git, "status", "--porcelain", "--", ".", ":(exclude)docs/upstream"]
    status = subprocess.run(changes, capture_output=True, text=True)
    return (head.stdout.strip() or "(no git)") + (CHANGED if status.stdout.strip() else "")


def versions(python: Path, checkouts: Sequence[Path]) -> dict[str, str]:
    """What the tests run beside."""
    asked = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True
    )
    places = dict(zip(("detectron2", "detrex"), checkouts, strict=True))
    found = {name: state_of(place) for name, place in places.items()}
    return found | {"torch": asked.stdout.strip()}


def parsed() -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what is pytest's of it."""
    first = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(description=first, allow_abbrev=False)
    parser.add_argument("--detectron2", type=Path, required=True, help="its source checkout")
    parser.add_argument("--detrex", type=Path, required=True, help="its source checkout")
    parser.add_argument("--venv", type=Path, default=WORK / "venv", help="reused where it exists")
    parser.add_argument("--torch", default="torch torchvision", help="what pip installs first")
    parser.add_argument(
        "--only", action="append", choices=pieces_of(ROOT / "tests"), help="a folder of tests"
    )
    parser.add_argument(
        "--resume", action="store_true", help="leave out the folders where nothing failed before"
    )
    parser.add_argument(
        "--record", type=Path, help="JSON file that gets the counts of the folders that are run"
    )
    args, pytest_arguments = parser.parse_known_args()
    if args.record and any(word.startswith(SELECTING) for word in pytest_arguments):
        parser.error("--record counts whole folders: run it without a selection of tests")
    for checkout in (args.detectron2, args.detrex):
        if not (checkout / "setup.py").is_file():
            parser.error(f"{checkout} is not a source checkout: it has no setup.py")
    return args, pytest_arguments


def main() -> None:
    """Make the environment, install, test, and end with the exit status of the tests."""
    args, pytest_arguments = parsed()
    checkouts = [args.detectron2.resolve(), args.detrex.resolve()]
    REPORTS.mkdir(parents=True, exist_ok=True)
    names = args.only or list(pieces_of(ROOT / "tests"))
    counts = passed_before(names) if args.resume else {}
    python = prepared(args.venv.absolute(), args.torch.split(), checkouts)
    variables = {**os.environ, "UPSTREAM_DETECTRON2": str(checkouts[0])}
    variables |= {"UPSTREAM_DETREX": str(checkouts[1])}
    variables.pop("PYTHONPATH", None)
    for name in names:
        if name not in counts:
            counts[name] = run_piece(python, name, pytest_arguments, variables)
    beside = versions(python, checkouts)
    if args.record:
        record(args.record, counts, beside, pieces_of(ROOT / "tests"))
    total = added(counts)
    for reason, count in total["reasons"].items():
        print(f"skipped {count}: {reason}")
    for failure in total["failures"]:
        print(f"failed: {failure}")
    commits = " and ".join(dict.fromkeys(piece["tested"] for piece in counts.values()))
    told = ", ".join(f"{n} {v}" for n, v in {"tokendetr": commits, **beside}.items())
    print(f"make test-upstream: {line_of(counts)}, {told}")
    sys.exit(bool(total["failures"]))


if __name__ == "__main__":
    main()
