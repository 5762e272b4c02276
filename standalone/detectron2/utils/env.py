"""Random seeds and facts about the environment."""

import logging
import os
import random
from datetime import datetime

import numpy as np
import torch

__all__ = ["TORCH_VERSION", "seed_all_rng"]

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
"""(major, minor) of torch."""


def seed_all_rng(seed: int | None = None) -> None:
    """Seed numpy, torch and Python.

    Args:
        seed: a non-negative number; None makes a strong random one and logs it.
    """
    if seed is None:
        now = int(datetime.now().strftime("%S%f"))
        seed = os.getpid() + now + int.from_bytes(os.urandom(2), "big")
        logging.getLogger(__name__).info(f"The seed, drawn at random, is {seed}")
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    random.seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)
