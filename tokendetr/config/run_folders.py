"""The config and the trained weights in the folder of a run."""

import os
from pathlib import Path

from tokendetr.config.files import config_files

__all__ = [
    "EVALUATED_CONFIG",
    "SPARSIFIED_CONFIG",
    "TRAINED_CONFIG",
    "is_run_folder",
    "run_config",
    "run_weights",
]

TRAINED_CONFIG = "config.yaml"
SPARSIFIED_CONFIG = "config.py"
EVALUATED_CONFIG = "config_evaluation.yaml"


def is_run_folder(source: str | os.PathLike[str]) -> bool:
    """Return True if a config's name, a file or a folder denotes the folder of a run.

    Any folder does, but a folder without a run does not hide the project's config of its name.
    """
    if not os.path.isdir(source):
        return False
    names = (TRAINED_CONFIG, SPARSIFIED_CONFIG, EVALUATED_CONFIG)
    has_config = any(Path(source, name).is_file() for name in names)
    return has_config or os.fspath(source) not in config_files()


def run_config(folder: Path, *, of_results: bool = False) -> Path:
    """Return the config in the folder of a run.

    A training writes ``config.yaml``, ``tokendetr sparsify`` writes ``config.py``, and an
    evaluation elsewhere writes ``config_evaluation.yaml``.

    Args:
        folder: the run's folder.
        of_results: return the config of the results in the folder: an evaluation of a sparsified
            detector may have had overrides.

    Raises:
        FileNotFoundError: there is none of them.
    """
    names = [TRAINED_CONFIG, SPARSIFIED_CONFIG, EVALUATED_CONFIG]
    if of_results:
        names = [TRAINED_CONFIG, EVALUATED_CONFIG, SPARSIFIED_CONFIG]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} is not the folder of a run: it has none of {names}")


def run_weights(folder: Path) -> str | None:
    """Return the best weights in the folder of a run, else its last ones; None without either."""
    files = [folder / name for name in ("model_best.pth", "model_final.pth")]
    return next((str(file) for file in files if file.is_file()), None)
