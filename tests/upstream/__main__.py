"""Run the whole suite, and the flows of this folder, beside the real detectron2 and detrex.

    python -m tests.upstream --detectron2 CHECKOUT --detrex CHECKOUT [--venv FOLDER] [PYTEST ...]

Makes a virtual environment from two source checkouts (kept for the next run), installs this
project's wheel there without the stand-ins, and runs the tests in a folder that has everything of
this checkout but its packages, so that the installed ones are tested. The last line has the counts.
Needs nothing but Python's standard library.
"""

import argparse
import collections
import os
import subprocess
import sys
import venv
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "upstream"
PACKAGES = ("tokendetr", "dynamic_detr", "focus_detr", "lite_detr", "sparse_detr")
PACKAGES += ("spt_backbone", "token_transforming", "standalone")
LEFT_OUT = {
    *PACKAGES,
    "projects",
    "build",
    "output",
    "tokendetr.pth",
    "tokendetr_startup.py",
    "setup.py",
}
# detrex imports pkg_resources, which later setuptools do not have; both build with torch at hand.
BUILD_TOOLS = ("setuptools<82", "wheel", "ninja")
LIBRARIES = ("timm", "fairscale", "einops", "wandb", "lvis", "submitit", "opencv-python-headless")


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
    """Return the interpreter of an environment with detectron2 and detrex, made if need be."""
    python = folder / "bin" / "python"
    if python.exists() and not run([python, "-c", "import detectron2, detrex"], cwd=folder):
        return python
    venv.create(folder, with_pip=True)
    install(python, *BUILD_TOOLS)
    install(python, *torch)
    install(python, *LIBRARIES, *requirements("requirements.in"))
    install(python, *requirements("requirements-dev.in"))
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


def summary(report: Path) -> str:
    """Print why tests were skipped, and return the line of counts."""
    counts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        counts[kinds[0] if kinds else "passed"] += 1
        skipped = case.find("skipped")
        if skipped is not None:
            reasons[skipped.get("message", "")] += 1
    for reason, count in reasons.most_common():
        print(f"skipped {count}: {reason}")
    return (
        f"{counts['passed']:,} passed, {counts['failure']} failed, {counts['error']} errors, "
        f"{counts['skipped']} skipped for {len(reasons)} reasons"
    )


def versions(python: Path, checkouts: Sequence[Path]) -> str:
    """What the tests ran beside."""
    asked = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True
    )
    commits = []
    for checkout in checkouts:
        git = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
        done = subprocess.run(git, capture_output=True, text=True)
        commits.append(f"{checkout.name} {done.stdout.strip() or '(no git)'}")
    return f"beside {', '.join(commits)}, torch {asked.stdout.strip()}"


def main() -> None:
    """Make the environment, install, test, and end with the exit status of the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--detectron2", type=Path, required=True, help="its source checkout")
    parser.add_argument("--detrex", type=Path, required=True, help="its source checkout")
    parser.add_argument("--venv", type=Path, default=WORK / "venv", help="reused where it exists")
    parser.add_argument("--torch", default="torch torchvision", help="what pip installs first")
    args, pytest_arguments = parser.parse_known_args()
    checkouts = [args.detectron2.resolve(), args.detrex.resolve()]
    for checkout in checkouts:
        if not (checkout / "setup.py").is_file():
            parser.error(f"{checkout} is no source checkout: it has no setup.py")
    WORK.mkdir(parents=True, exist_ok=True)
    python = environment(args.venv.absolute(), args.torch.split(), checkouts)
    install_project(python)
    report = WORK / "report.xml"
    report.unlink(missing_ok=True)
    variables = {**os.environ, "UPSTREAM_DETECTRON2": str(checkouts[0])}
    variables |= {"UPSTREAM_DETREX": str(checkouts[1])}
    variables.pop("PYTHONPATH", None)
    pytest = [python, "-m", "pytest", "--junitxml", report, *pytest_arguments]
    status = run(pytest, cwd=working_folder(), env=variables)
    if not report.is_file():
        sys.exit(f"pytest ended with {status} before it wrote {report}")
    print(f"make test-upstream: {summary(report)}, {versions(python, checkouts)}")
    sys.exit(status)


if __name__ == "__main__":
    main()
