"""Imported by the server that processes of campaigns are forked from: one training, thrown away.

After it everything that a training imports on its way is there (torch's compiler, matplotlib).
"""

import os
import tempfile
import threading
from pathlib import Path

import torch

from tests.reliability.training_runs import data, train_here

torch.set_num_threads(1)  # a fork has no threads but its own
with tempfile.TemporaryDirectory() as folder:
    out, err = os.dup(1), os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    train_here(data(Path(folder)), Path(folder) / "run")
    os.dup2(out, 1)
    os.dup2(err, 2)
    for handle in (out, err, silence):
        os.close(handle)
assert threading.active_count() == 1, threading.enumerate()
