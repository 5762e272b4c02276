"""The config and the trained weights in the folder of a run."""

from pathlib import Path

__all__ = ["run_config", "run_weights"]

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


def run_weights(folder: Path) -> str | None:
    """Return the best weights in the folder of a run, else its last ones; None without either."""
    files = [folder / name for name in ("model_best.pth", "model_final.pth")]
    return next((str(file) for file in files if file.is_file()), None)
