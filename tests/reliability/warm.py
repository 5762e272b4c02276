"""Train once, so that processes forked from this one have imported all that a training needs.

The server of :func:`tests.reliability.training_runs.start_warm` imports this module. A training
imports some libraries only when it reaches them, such as matplotlib. Its result is deleted.
"""

import os
import tempfile
import threading
from pathlib import Path

import torch

from tests.reliability.training_runs import train_here, write_data

torch.set_num_threads(1)  # a fork has no threads but its own
with tempfile.TemporaryDirectory() as folder:
    # By descriptor: libraries write to the streams that they found when they were imported.
    out, err = os.dup(1), os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    train_here(write_data(Path(folder)), Path(folder) / "run")
    os.dup2(out, 1)
    os.dup2(err, 2)
    for handle in (out, err, silence):
        os.close(handle)
assert threading.active_count() == 1, threading.enumerate()
