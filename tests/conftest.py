"""Shared settings: CPU threads, time limits by load, reasons of skips, a check of the stand-ins."""

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tokendetr.compat.stand_ins import is_stand_in

STANDALONE = Path(__file__).resolve().parent.parent / "standalone"
# Not resolved: the packages may be installed elsewhere, and this folder have links to the rest.
CHECKOUT = Path(__file__).absolute().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    check_stand_ins()
    # A shell starts what runs in the background with interrupts ignored, and programs inherit
    # that: those that tests interrupt would go on.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Programs that tests start read configs that import from ``tests``.
    paths = [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if "OMP_NUM_THREADS" not in os.environ:
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def check_stand_ins() -> None:
    """Refuse to run without detectron2, or on the stand-in of another checkout."""
    for name in ("detectron2", "detrex"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin) if spec is not None and spec.origin else None
        elsewhere = origin is not None and (origin.parents[1] / "tokendetr_standalone").is_dir()
        if origin is None or (elsewhere and STANDALONE not in origin.parents):
            raise pytest.UsageError(
                f"{name} is {origin or 'not installed'}: run `make build` for this checkout's "
                f"stand-ins, or put {STANDALONE} on PYTHONPATH"
            )


def differing() -> dict[str, str]:
    """Return the behavior of the real packages by test, where it differs."""
    lines = Path(__file__).with_name("differs.txt").read_text().splitlines()
    return dict(line.split(" | ", 1) for line in lines if not line.startswith("#"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {}
    package = importlib.util.find_spec("tokendetr")
    if package is None or CHECKOUT not in Path(str(package.origin)).parents:
        reasons["checkout"] = "needs a checkout of the sources, and an installed wheel is tested"
    if not torch.cuda.is_available():
        reasons["cuda"] = "needs an NVIDIA GPU (torch.cuda.is_available() is False)"
    if is_stand_in("detectron2"):
        reasons["upstream"] = "needs detectron2 and detrex themselves: make test-upstream"
    else:
        reasons["stand_ins"] = "tests the stand-ins, and detectron2 and detrex are the real ones"
        reasons["differs"] = "detectron2 or detrex itself does not pass: tests/differs.txt"
        known = differing()
        for item in items:
            path = item.path.relative_to(config.rootpath).as_posix()
            names = {item.name, getattr(item, "originalname", item.name)}
            if any(f"{path}::{name}" in known for name in names):
                item.add_marker(pytest.mark.differs)
    for item in items:
        for name, reason in reasons.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Any:
    """Double a test's limit, and scale it by the number of processes per CPU."""
    import pytest_timeout

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    share = max(1.0, load / (os.cpu_count() or 1))
    scaled = settings._replace(timeout=settings.timeout * 2 * share)
    return pytest_timeout.pytest_timeout_set_timer(item, scaled)
