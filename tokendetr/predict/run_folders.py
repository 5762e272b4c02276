"""Find the config and weights of a detector: in the folder of a run, or by a config's name."""

import os
from pathlib import Path

from tokendetr.config import zoo

__all__ = ["find_detector", "run_config"]

EVALUATED_CONFIG = "config_evaluation.yaml"


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
    names = ["config.yaml", "config.py", EVALUATED_CONFIG]
    if of_results:
        names = ["config.yaml", EVALUATED_CONFIG, "config.py"]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} is not the folder of a run: it has none of {names}")


def find_detector(name: str) -> tuple[str, str | None]:
    """Return a config file and its weights, None if the config itself names them.

    Args:
        name: a config's name, a config file, or the folder of a run.

    Raises:
        KeyError: there is no config of that name.
        FileNotFoundError: the folder has no config.
    """
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        config_file = run_config(folder)
        files = [folder / file for file in ("model_best.pth", "model_final.pth")]
        return str(config_file), next((str(file) for file in files if file.is_file()), None)
    if name.endswith((".py", ".yaml", ".yml")):
        return name, None
    return str(zoo.get_config_file(name)), zoo.get_checkpoint(name)
