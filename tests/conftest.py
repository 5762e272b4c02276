"""Shared settings of the test suite: CPU threads, time limits that grow with the load, skipping
CUDA tests with a reason, a check that this checkout's stand-ins are tested."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

STANDALONE = Path(__file__).resolve().parent.parent / "standalone"


def pytest_configure(config: pytest.Config) -> None:
    check_stand_ins()
    # Programs that tests start read configs that import from ``tests``.
    paths = [str(STANDALONE.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if "OMP_NUM_THREADS" not in os.environ:
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def check_stand_ins() -> None:
    """Refuse to run on nobody's detectron2, or on the stand-in of another checkout."""
    for name in ("detectron2", "detrex"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin) if spec is not None and spec.origin else None
        elsewhere = origin is not None and (origin.parents[1] / "tokendetr_standalone").is_dir()
        if origin is None or (elsewhere and STANDALONE not in origin.parents):
            raise pytest.UsageError(
                f"{name} is {origin or 'not installed'}: run `make build` for this checkout's "
                f"stand-ins, or put {STANDALONE} on PYTHONPATH"
            )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU (torch.cuda.is_available() is False)")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Any:
    """Give a test twice its limit, and as many times that as processes share a CPU."""
    import pytest_timeout

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    share = max(1.0, load / (os.cpu_count() or 1))
    scaled = settings._replace(timeout=settings.timeout * 2 * share)
    return pytest_timeout.pytest_timeout_set_timer(item, scaled)
