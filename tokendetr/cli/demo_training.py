"""Run the demo's short training: kill it with SIGKILL halfway, then resume it to its end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokendetr.io.progress import Progress
from tokendetr.train.writers import recorded_rows


def training_command(config: str, folder: Path, iterations: int, *extra: str) -> list[str]:
    """Return the command of a short fine-tuning from a config's initial weights."""
    return [
        sys.executable,
        "-m",
        "tokendetr.cli.train_net",
        "--config-file",
        config,
        *extra,
        f"train.output_dir={folder}",
        f"train.max_iter={iterations}",
        f"train.checkpointer.period={iterations // 4}",
        f"train.eval_period={iterations}",
        "train.log_period=5",
    ]


def train_with_a_crash(config: str, folder: Path, iterations: int) -> dict[str, Any]:
    """Train, kill the process with SIGKILL after its second checkpoint, resume to the end.

    Returns:
        The record of the evaluation at the end, such as ``bbox/AP``.

    Raises:
        RuntimeError: a run failed or did not resume; the message names its log.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    console = folder / "console.txt"
    checkpoint = folder / f"model_{iterations // 4 * 2 - 1:07d}.pth"

    def is_due() -> bool:
        return checkpoint.exists() and _last_iteration(folder) > iterations // 2

    command = training_command(config, folder, iterations)
    run_training(command, console, iterations, kill_when=is_due)
    print(f"  killed with SIGKILL after iteration {_last_iteration(folder)}; resuming", flush=True)
    run_training(training_command(config, folder, iterations, "--resume"), console, iterations)
    if "Resuming from" not in console.read_text():
        raise RuntimeError(f"the training did not resume; see {console}")
    evaluated = [record for record in _records(folder) if "bbox/AP" in record]
    if not evaluated:
        raise RuntimeError(f"the training wrote no evaluation; see {console}")
    return evaluated[-1]


def run_training(
    command: list[str],
    console: Path,
    iterations: int,
    kill_when: Callable[[], bool] | None = None,
) -> None:
    """Run a training with a progress bar that shows its state.

    Args:
        command: command of the training.
        console: file for its output, in its output folder.
        iterations: iterations of the whole training.
        kill_when: polled during the training; True kills it.

    Raises:
        RuntimeError: the training failed; the message names its log.
    """
    print("  " + " ".join(command).replace(sys.executable, "python"), flush=True)
    folder = console.parent
    with console.open("a") as log, Progress(total=iterations, unit="iteration", leave=False) as bar:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            before = _last_iteration(folder) + 1
            while process.poll() is None:
                time.sleep(0.3)
                reached = min(_last_iteration(folder) + 1, iterations)
                bar.set_postfix_str(_waiting_for(reached, before, iterations), refresh=False)
                bar.update(reached - bar.n)
                bar.refresh()
                if kill_when is not None and kill_when():
                    break
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if kill_when is None and process.returncode != 0:
        tail = "\n".join(console.read_text().splitlines()[-15:])
        raise RuntimeError(f"training failed (exit {process.returncode}); see {console}:\n{tail}")


def _waiting_for(done: int, before: int, iterations: int) -> str:
    """Return what a training that makes no progress is doing."""
    if done >= iterations:
        return "evaluating"
    return "starting: PyTorch, data, checkpoint" if done <= before else ""


def _records(folder: Path) -> list[dict[str, Any]]:
    return recorded_rows(str(folder / "metrics.json"))


def _last_iteration(folder: Path) -> int:
    records = _records(folder)
    return int(records[-1]["iteration"]) if records else -1
