"""Find this project's configs and weights by name.

A config's name is its file name without ``.py``, such as ``dino_r50_4scale_12ep``. If a method's
config and a detector's share a file name, the method's is called ``<method>/<name>``. Files under a
``models/`` folder are parts of configs (a model without data and schedule) and have no name.
"""

import difflib
from functools import cache
from pathlib import Path

from tokendetr._projects import projects_folder

PROJECTS_DIR = Path(projects_folder())
"""Folder of the projects: configs, checkpoints and READMEs, one folder per detector and method.

It is inside the installed package or in the source checkout; other packages named ``projects`` are
not searched."""

RENAMED = {
    f"focus_dino_{backbone}_4scale_{epochs}ep": f"focus_detr_{backbone}_4scale_{epochs}ep"
    for backbone, lengths in {
        "r50": (12, 24, 36),
        "r101": (12, 24, 36),
        "swin_tiny_224": (12, 24, 36),
        "swin_base_384": (36,),
        "swin_large_384": (36,),
    }.items()
    for epochs in lengths
}
"""Former name of a config -> current name."""


def config_files() -> dict[str, Path]:
    """Return every config's name and file.

    Raises:
        RuntimeError: two configs have the same name.
    """
    return dict(_config_files())


@cache
def _config_files() -> dict[str, Path]:
    files: dict[str, Path] = {}
    found = sorted(PROJECTS_DIR.glob("*/configs/**/*.py"))
    # Detectors first, so that a shared name refers to the detector's config.
    for path in sorted(found, key=lambda path: not (_project(path) / "modeling").is_dir()):
        inside = path.parent.relative_to(PROJECTS_DIR)  # the checkout itself may be in a "models"
        if "models" in inside.parts or path.name.startswith("_"):
            continue
        name = path.stem
        if name in files and _project(files[name]) != _project(path):
            name = f"{_project(path).name}/{name}"
        if name in files:
            raise RuntimeError(
                f"two configs are named '{name}': {files[name]} and {path}. Rename one of them."
            )
        files[name] = path
    return files


def config_file(name: str) -> Path:
    """Return the path of a config of the project.

    Args:
        name: a config's name (``dino_r50_4scale_12ep``) or former name.

    Raises:
        KeyError: there is no such config; the message names the nearest ones.
    """
    files = _config_files()
    name = RENAMED.get(name, name)
    if name not in files:
        nearest = difflib.get_close_matches(name, files, n=3, cutoff=0.4)
        hint = f"Nearest: {', '.join(nearest)}." if nearest else "See tokendetr.config.zoo.list()."
        raise KeyError(f"there is no config named '{name}'. {hint}")
    return files[name]


def checkpoint_file(name: str) -> str:
    """Return the path of the trained weights of a config, whether or not they were shipped.

    Config files name the weights that training starts from with it, so that the path does not
    depend on the working folder.

    Args:
        name: a config's name.

    Raises:
        KeyError: there is no such config.
    """
    config = config_file(name)
    return str(_project(config) / "checkpoints" / f"{config.stem}.safetensors")


def shipped_weights(config: str | Path) -> str | None:
    """Return the trained weights that come with a config of the project, None if there are none.

    Args:
        config: a config's file; one outside the project has no shipped weights.
    """
    path = Path(config).resolve()
    if PROJECTS_DIR not in path.parents:
        return None
    weights = _project(path) / "checkpoints" / f"{path.stem}.safetensors"
    return str(weights) if weights.is_file() else None


def _project(path: Path) -> Path:
    """Return the folder of the project that a config belongs to."""
    return PROJECTS_DIR / path.relative_to(PROJECTS_DIR).parts[0]
