"""Hooks for profilers, memory and exact batch-norm statistics; public through ``hooks``."""

import itertools
import logging
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from detectron2.utils.file_io import PathManager
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

__all__ = ["AutogradProfiler", "PreciseBN", "TorchMemoryStats", "TorchProfiler"]


class PreciseBN(HookBase):
    """Recompute batch-norm statistics over many batches every ``period`` iterations.

    Args:
        period: in iterations; 0 means only after the last one.
        model: its batch-norm layers in training mode are updated; nothing happens if it has none.
        data_loader: batches in the form the model takes.
        num_iter: number of batches.
    """

    def __init__(
        self, period: int, model: torch.nn.Module, data_loader: Any, num_iter: int
    ) -> None:
        self._logger = logging.getLogger(__name__)
        if len(get_bn_modules(model)) == 0:
            self._logger.info(
                "No layer of batch norm is in training mode, so PreciseBN does nothing."
            )
            self._disabled = True
            return
        self._disabled = False
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        self._period = period
        self._data_iter: Any = None

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        is_final = next_iter == self.trainer.max_iter
        if is_final or (self._period > 0 and next_iter % self._period == 0):
            self.update_stats()

    def update_stats(self) -> None:
        """Update the statistics now."""
        if getattr(self, "_disabled", False):
            return
        if self._data_iter is None:
            self._data_iter = iter(self._data_loader)

        def batches() -> Any:
            for count in itertools.count(1):
                if count % 100 == 0:
                    self._logger.info(
                        "Running precise-BN ... %d/%d iterations.", count, self._num_iter
                    )
                yield next(self._data_iter)

        # A separate storage: metrics of these forward passes do not belong to the training.
        with EventStorage():
            self._logger.info(
                "PreciseBN measures statistics on %d batches; other batches give other ones",
                self._num_iter,
            )
            update_bn_stats(self._model, batches(), self._num_iter)


class TorchProfiler(HookBase):
    """Profile chosen iterations with ``torch.profiler``.

    Args:
        enable_predicate: takes the trainer; True to profile the coming iteration.
        output_dir: folder of the traces, for chrome://tracing.
        activities: activities to profile; CPU and, if available, CUDA when None.
        save_tensorboard: write the trace for TensorBoard's profiler below ``output_dir/log``.
    """

    def __init__(
        self,
        enable_predicate: Callable[[TrainerBase], bool],
        output_dir: str,
        *,
        activities: list[Any] | None = None,
        save_tensorboard: bool = True,
    ) -> None:
        self._enable_predicate = enable_predicate
        self._output_dir = output_dir
        self._activities = activities
        self._save_tensorboard = save_tensorboard
        self._profiler: torch.profiler.profile | None = None

    def before_step(self) -> None:
        if not self._enable_predicate(self.trainer):
            return
        on_trace_ready = None
        if self._save_tensorboard:
            on_trace_ready = torch.profiler.tensorboard_trace_handler(
                os.path.join(
                    self._output_dir, "log", f"profiler-tensorboard-iter{self.trainer.iter}"
                ),
                f"worker{comm.get_rank()}",
            )
        self._profiler = torch.profiler.profile(
            activities=self._activities,
            on_trace_ready=on_trace_ready,
            record_shapes=True,
            profile_memory=True,
            with_stack=True,
        )
        self._profiler.__enter__()

    def after_step(self) -> None:
        if self._profiler is None:
            return
        self._profiler.__exit__(None, None, None)
        if not self._save_tensorboard:
            _export_trace(self._profiler, self._output_dir, self.trainer.iter)
        self._profiler = None


class AutogradProfiler(HookBase):
    """Profile chosen iterations with the autograd profiler and write a chrome trace.

    Args:
        enable_predicate: takes the trainer; True to profile the coming iteration.
        output_dir: folder of the traces.
        use_cuda: also time CUDA kernels.
    """

    def __init__(
        self,
        enable_predicate: Callable[[TrainerBase], bool],
        output_dir: str,
        *,
        use_cuda: bool = True,
    ) -> None:
        self._enable_predicate = enable_predicate
        self._output_dir = output_dir
        self._use_cuda = use_cuda
        self._profiler: Any = None

    def before_step(self) -> None:
        if self._enable_predicate(self.trainer):
            device = "cuda" if self._use_cuda and torch.cuda.is_available() else None
            self._profiler = torch.autograd.profiler.profile(use_device=device)
            self._profiler.__enter__()

    def after_step(self) -> None:
        if self._profiler is None:
            return
        self._profiler.__exit__(None, None, None)
        _export_trace(self._profiler, self._output_dir, self.trainer.iter)
        self._profiler = None


def _export_trace(profiler: Any, output_dir: str, iteration: int) -> None:
    PathManager.mkdirs(output_dir)
    out_file = os.path.join(output_dir, f"profiler-trace-iter{iteration}.json")
    if "://" not in out_file:
        profiler.export_chrome_trace(out_file)
        return
    with tempfile.TemporaryDirectory(prefix="detectron2_profiler") as folder:
        local = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(local)
        PathManager.copy_from_local(local, out_file)


class TorchMemoryStats(HookBase):
    """Log CUDA memory use every ``period`` iterations, a limited number of times.

    Args:
        period: in iterations.
        max_runs: maximum number of logs.
    """

    def __init__(self, period: int = 20, max_runs: int = 10) -> None:
        self._logger = logging.getLogger(__name__)
        self._period = period
        self._max_runs = max_runs
        self._runs = 0

    def after_step(self) -> None:
        if self._runs >= self._max_runs or not torch.cuda.is_available():
            return
        last = self.trainer.iter == self.trainer.max_iter - 1
        if (self.trainer.iter + 1) % self._period != 0 and not last:
            return
        mib = 1024.0 * 1024.0
        self._logger.info(
            " iter: %d  max_reserved_mem: %.0fMB  reserved_mem: %.0fMB  max_allocated_mem: %.0fMB  "
            "allocated_mem: %.0fMB",
            self.trainer.iter,
            torch.cuda.max_memory_reserved() / mib,
            torch.cuda.memory_reserved() / mib,
            torch.cuda.max_memory_allocated() / mib,
            torch.cuda.memory_allocated() / mib,
        )
        self._runs += 1
        torch.cuda.reset_peak_memory_stats()
