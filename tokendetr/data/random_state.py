"""Random number generators: seeds per sample, states that a checkpoint can hold."""

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
    """The states of this process's generators: Python, numpy, torch, and the current CUDA device.

    Returns:
        Tensors and plain numbers only, so that ``torch.load(weights_only=True)`` reads them.
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
    # Asking for the state of a device would start CUDA in processes that do not use it.
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
    """A block after which the generators are as before, whatever it drew."""
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)


@contextmanager
def seeded_rng(*entropy: int) -> Iterator[None]:
    """A block with the CPU generators seeded by numbers alone; afterwards they are as before.

    What the block draws depends on ``entropy`` and on nothing that ran before, in whichever process
    it runs.

    Args:
        entropy: non-negative numbers, for example a seed and the position in a stream.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state()
    words = np.random.SeedSequence(entropy).generate_state(3, dtype=np.uint32)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    # The global CPU generator alone: torch.manual_seed would reseed the GPUs too.
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


class RngState:
    """The generators of all ranks, as something a checkpointer saves and loads.

    Loading only remembers the state; :meth:`apply` sets it, right before the first step, so that
    nothing that runs in between (starting loaders, building hooks) can move it.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """States by rank; all ranks must call this."""
        return {str(rank): s for rank, s in enumerate(comm.all_gather(capture_rng()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember the state of this rank, if there is one."""
        self._loaded = state.get(str(comm.get_rank()))

    def apply(self) -> bool:
        """Set the generators to the loaded state; whether there was one that could be used."""
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
