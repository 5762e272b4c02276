"""The training loop: trainers that run steps, and hooks around them."""
# Over 350 lines: upstream has all of this in one module, and users find it there.

import concurrent.futures
import logging
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]


class HookBase:
    """Base class of callbacks around training steps.

    The trainer calls ``before_train``, then for each step ``before_step``, ``after_backward`` (once
    gradients exist, if the trainer says so) and ``after_step``, and finally ``after_train``.

    Attributes:
        trainer: the trainer, set when the hook is registered.
    """

    trainer: "TrainerBase" = None  # type: ignore[assignment]

    def before_train(self) -> None:
        """Run before the first step."""

    def after_train(self) -> None:
        """Run after the last step, also if training ends with an error."""

    def before_step(self) -> None:
        """Run before each step."""

    def after_backward(self) -> None:
        """Run between the backward pass and the update."""

    def after_step(self) -> None:
        """Run after each step."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to checkpoint.

        A hook that returns something here also defines ``load_state_dict``.
        """
        return {}


class TrainerBase:
    """Base class of iterative trainers with hooks; subclasses define :meth:`run_step`.

    Attributes:
        iter: the current iteration.
        start_iter: the first iteration of this run.
        max_iter: one past the last iteration.
        storage: the metrics, an EventStorage while training runs.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Add hooks, called in the order of registration; None is left out."""
        added = [hook for hook in hooks if hook is not None]
        for hook in added:
            assert isinstance(hook, HookBase), hook
            # A proxy: hooks and trainer would otherwise keep each other alive.
            hook.trainer = weakref.proxy(self)
        self._hooks.extend(added)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations ``start_iter <= iter < max_iter``.

        ``after_train`` of the hooks also runs after an error, which is then raised.
        """
        logger = logging.getLogger(__name__)
        logger.info("The training starts with iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # So that after_train can tell a finished training from an interrupted one.
                self.iter += 1
            except Exception:
                logger.exception("The training was stopped by an error:")
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        # The storage shows the current iteration to everything that runs in the step.
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return iteration and hook states by class name (only the first hook of a class)."""
        states: dict[str, Any] = {}
        for hook in self._hooks:
            state = hook.state_dict()
            if state:
                states.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter, **({"hooks": states} if states else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; unknown hooks are skipped with a warning."""
        logger = logging.getLogger(__name__)
        self.iter = state_dict["iteration"]
        for key, value in state_dict.get("hooks", {}).items():
            hook = next((h for h in self._hooks if type(h).__qualname__ == key), None)
            if hook is None:
                logger.warning("Cannot find the hook '%s', its state_dict is ignored.", key)
            else:
                hook.load_state_dict(value)  # type: ignore[attr-defined]


class SimpleTrainer(TrainerBase):
    """Trainer of one model with one optimizer and loader: load, forward, backward, update.

    Args:
        model: maps a batch to a loss or a dict of losses, which are summed. Set to training mode.
        data_loader: an iterable of batches, started again when it ends.
        optimizer: the optimizer.
        gather_metric_period: steps between averages of the losses over ranks, which are recorded.
        zero_grad_before_forward: clear gradients before the forward pass instead of before the
            backward pass.
        async_write_metrics: record metrics in a thread, so that a GPU need not wait. Then a
            non-finite loss is noticed late.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._data_loader_iter_obj: Iterator[Any] | None = None
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self.concurrent_executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        # Created on first use: starting the workers is part of training, not of construction.
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def _next_batch(self) -> tuple[Any, float]:
        """Return the next batch and the seconds spent waiting for it."""
        assert self.model.training, f"{type(self).__name__}: the model is in eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        return data, time.perf_counter() - start

    def _forward(self, data: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the losses by name and their sum."""
        loss_dict = self.model(data)
        if isinstance(loss_dict, torch.Tensor):
            return {"total_loss": loss_dict}, loss_dict
        return loss_dict, sum(loss_dict.values())

    def run_step(self) -> None:
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict, losses = self._forward(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses.backward()
        self.after_backward()
        self._record(loss_dict, data_time)
        self.optimizer.step()

    def _record(self, loss_dict: dict[str, torch.Tensor], data_time: float) -> None:
        if self.async_write_metrics:
            self.concurrent_executor.submit(
                self._write_metrics, loss_dict, data_time, iter=self.iter
            )
        else:
            self._write_metrics(loss_dict, data_time)

    def _write_metrics(
        self,
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        current = self.iter if iter is None else iter
        if (current + 1) % self.gather_metric_period != 0:
            return
        try:
            self.write_metrics(loss_dict, data_time, current, prefix)
        except Exception:
            logging.getLogger(__name__).exception("The metrics could not be written:")
            raise

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        cur_iter: int,
        prefix: str = "",
    ) -> None:
        """Average losses over ranks and put them into the event storage of rank 0.

        Args:
            loss_dict: scalar losses by name.
            data_time: seconds this rank waited for its batch; the slowest rank's is recorded.
            cur_iter: the iteration they belong to.
            prefix: put before the names.

        Raises:
            FloatingPointError: the sum of the losses is not finite.
        """
        metrics = {name: value.detach().cpu().item() for name, value in loss_dict.items()}
        metrics["data_time"] = data_time
        all_metrics = comm.gather(metrics)
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        slowest = float(np.max([m.pop("data_time") for m in all_metrics]))
        storage.put_scalar("data_time", slowest, cur_iter=cur_iter)
        averages = {name: float(np.mean([m[name] for m in all_metrics])) for name in all_metrics[0]}
        total = sum(averages.values())
        if not np.isfinite(total):
            raise FloatingPointError(
                f"The loss of iteration {cur_iter} is infinite or NaN: {averages}"
            )
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(averages) > 1:
            for name, average in averages.items():
                storage.put_scalar(name, average, cur_iter=cur_iter)

    def reset_data_loader(self, data_loader_builder: Any) -> None:
        """Replace the loader by ``data_loader_builder()``, releasing the old one first."""
        del self.data_loader
        self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])

    def after_train(self) -> None:
        super().after_train()
        self.concurrent_executor.shutdown(wait=True)


class AMPTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` with automatic mixed precision.

    Args:
        model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward,
            async_write_metrics: as in :class:`SimpleTrainer`.
        grad_scaler: scales the loss so that float16 gradients do not vanish; a
            ``torch.amp.GradScaler`` when None (one that does nothing without CUDA).
        precision: the low precision, float16 or bfloat16.
        log_grad_scaler: record the scale as a metric.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: Any = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        if isinstance(model, DistributedDataParallel):
            several_devices = model.device_ids and len(model.device_ids) > 1
            assert not several_devices, "AMPTrainer does not support multi-device modules!"
        assert not isinstance(model, DataParallel), "AMPTrainer does not support DataParallel!"
        super().__init__(
            model,
            data_loader,
            optimizer,
            gather_metric_period,
            zero_grad_before_forward,
            async_write_metrics,
        )
        parameter = next(model.parameters(), None)
        self._device_type = "cpu" if parameter is None else parameter.device.type
        if grad_scaler is None:
            grad_scaler = torch.amp.GradScaler(
                self._device_type, enabled=self._device_type == "cuda"
            )
        self.grad_scaler = grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def run_step(self) -> None:
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        low_precision: Any = nullcontext()
        if self.precision != torch.float32:
            low_precision = torch.autocast(self._device_type, dtype=self.precision)
        with low_precision:
            loss_dict, losses = self._forward(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        self.after_backward()
        self._record(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
