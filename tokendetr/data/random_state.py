"""Random number generators: seeds per sample, and states that a checkpoint can store."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm

__all__ = ["RngState", "capture_rng", "preserved_rng", "restore_rng", "seeded_rng"]

logger = logging.getLogger(__name__)


def capture_rng() -> dict[str, Any]:
    """Return the states of this process's generators: Python, numpy, torch and the current GPU.

    Returns:
        Tensors and plain numbers only, which ``torch.load(weights_only=True)`` accepts.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached_gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached_gauss),
        ],
        "torch": torch.get_rng_state(),
    }
    # Querying a device's state would initialize CUDA in processes that do not use it.
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Set this process's generators to what :func:`capture_rng` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached_gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached_gauss))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the generators after the ``with`` block, whatever it drew."""
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)


@contextmanager
def seeded_rng(*entropy: int) -> Iterator[None]:
    """Seed the CPU generators for the ``with`` block, and restore them afterwards.

    What the block draws depends on ``entropy`` alone: not on earlier draws, and not on the process.

    Args:
        entropy: non-negative integers, for example a seed and the position in a stream.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state()
    words = np.random.SeedSequence(entropy).generate_state(3, dtype=np.uint32)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    # Only the global CPU generator: torch.manual_seed would reseed the GPUs too.
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


class RngState:
    """Checkpointable state of the generators of all ranks.

    Loading only stores the state. :meth:`apply` sets it right before the first step, so that
    nothing that runs in between (starting workers, building hooks) can advance the generators.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the states by rank; a collective operation, so all ranks must call it."""
        return {str(rank): s for rank, s in enumerate(comm.all_gather(capture_rng()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Store this rank's state until :meth:`apply`."""
        self._loaded = state.get(str(comm.get_rank()))

    def apply(self) -> bool:
        """Set the generators to the loaded state; return False if it is missing or damaged."""
        state, self._loaded = self._loaded, None
        if state is None:
            return False
        before = capture_rng()
        try:
            restore_rng(state)
        except Exception as error:  # whatever a damaged state makes of the generators
            restore_rng(before)
            logger.warning("The random state of the checkpoint cannot be used: %r", error)
            return False
        return True
