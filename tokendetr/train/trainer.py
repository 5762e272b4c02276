"""The training step: mixed precision, gradient accumulation, clipping, checks before an update."""

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tokendetr.data.named_errors import describe_record
from tokendetr.data.stream import StreamLoader
from tokendetr.errors import ConfigError, NonFiniteLossError
from tokendetr.train.divergence import bad_gradients, is_divergence, loss_report
from tokendetr.train.gradients import box_weights, clip_gradients
from tokendetr.train.optimizer_state import load_optimizer_state
from tokendetr.train.stop import StopSignals, TrainingInterrupted
from tokendetr.train.writers import (
    KEPT_VALUES,
    forget_old_metrics,
    metrics_state,
    restore_metrics,
)

__all__ = ["Trainer"]

_MAX_SKIPPED = 32
"""Number of updates in a row that float16's scaler may skip. Each skip halves the scale, so it has
then fallen from its initial 2^16 to 2^-16."""


class Trainer(SimpleTrainer):
    """detectron2's trainer with accumulation, mixed precision and checks of losses and gradients.

    A step reads ``grad_accum_steps`` batches, accumulates their gradients and updates once. Before
    every backward pass all ranks check together that every loss on every rank is finite, and before
    the update that the gradient is; otherwise all of them raise.

    Args:
        model: maps a batch to a dict of losses; may be wrapped in DDP.
        data_loader: an infinite iterable of batches (lists of records).
        optimizer: the optimizer.
        amp_dtype: float16 or bfloat16 to run the forward pass under autocast; float16 also scales
            the loss. None for no mixed precision.
        clip_grad: arguments of ``torch.nn.utils.clip_grad_norm_``, or None.
        grad_accum_steps: batches per update.
        grad_accum_weighting: weighting of the losses of these batches. ``"boxes"`` weights by the
            number of annotated boxes, which makes the update equal to that of one large batch for
            criteria that divide by that number (those of detection transformers do).
            ``"images"`` weights all batches equally.
        stop: signals that end the training; they interrupt waiting for data at once.

    Attributes:
        save_on_stop: called on all ranks with the last finished iteration before a signal ends the
            training.

    Raises:
        ValueError, TypeError: an argument is out of range or unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None = None,
        clip_grad: Mapping[str, Any] | None = None,
        grad_accum_steps: int = 1,
        grad_accum_weighting: str = "boxes",
        stop: StopSignals | None = None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        if grad_accum_steps < 1:
            raise ValueError(f"train.grad_accum_steps={grad_accum_steps}: must be at least 1")
        if grad_accum_weighting not in ("boxes", "images"):
            raise ValueError(
                f"train.grad_accum_weighting={grad_accum_weighting!r}: use 'boxes' or 'images'"
            )
        if clip_grad is not None:  # before the first step does
            inspect.signature(torch.nn.utils.clip_grad_norm_).bind([], **clip_grad)
        self.amp_dtype = amp_dtype
        self.clip_grad = None if clip_grad is None else dict(clip_grad)
        self.grad_accum_steps = grad_accum_steps
        self.grad_accum_weighting = grad_accum_weighting
        self.stop = stop or StopSignals()
        self.save_on_stop: Callable[[int], None] | None = None
        self._skipped = 0
        self._loaded_metrics: dict[str, Any] = {}
        self._device = next(model.parameters()).device
        scales = amp_dtype == torch.float16
        self.grad_scaler = torch.amp.GradScaler(self._device.type, enabled=scales)
        self._batches: Any = None

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations ``start_iter <= iter < max_iter``.

        Differs from detectron2's in two points. After an error ``after_train`` is not called, since
        hooks may wait there for other ranks, which wait elsewhere; hooks with a method ``abandon``
        release their resources in it. And in ``after_train`` the iteration is always ``max_iter``,
        even if no iterations were left.
        """
        logger = logging.getLogger(__name__)
        logger.info("The training starts with iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            restore_metrics(self.storage, self._loaded_metrics)
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    if (self.iter + 1) % KEPT_VALUES == 0:
                        forget_old_metrics(self.storage)
                self.iter = max_iter
                self.after_train()
            except BaseException as error:
                if isinstance(error, Exception):
                    logger.error("Training failed at iteration %d: %s", self.iter, error)
                for hook in self._hooks:
                    if hasattr(hook, "abandon"):
                        hook.abandon()
                raise

    def run_step(self) -> None:
        """Run one update."""
        assert self.model.training, "the model was left in evaluation mode by a hook"
        start = time.perf_counter()
        batches = self._next_batches()
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        for index, (batch, weight) in enumerate(zip(batches, self._weights(batches), strict=True)):
            is_last = index == len(batches) - 1
            with self._gradient_sync(is_last):
                losses = self._backward(batch, weight)
            for name, value in losses.items():
                totals[name] = totals[name] + value if name in totals else value
        self.after_backward()
        grad_norm = self._clip_and_check(batches)
        self._write_metrics(totals, data_time)
        if comm.is_main_process():
            get_event_storage().put_scalar("grad_norm", grad_norm)
        self._update()

    def _next_batches(self) -> list[Any]:
        """Return the batches of this update, once all ranks have theirs and none was signaled.

        This is the only point of a step at which a signal stops training, before every other
        collective operation of the step. All ranks take part in the exchange of signals in every
        step, whether or not they got one: a rank that left on its own would keep the others waiting
        in the next reduction of gradients.

        Raises:
            ConfigError: the loader has no more batches.
            TrainingInterrupted: on all ranks, after saving a checkpoint of the last iteration.
        """
        position = getattr(self.data_loader, "batches_read", 0)
        batches: list[Any] | None = None
        try:
            with self.stop.interruptible():
                if self._batches is None:
                    self._batches = iter(self.data_loader)
                batches = [next(self._batches) for _ in range(self.grad_accum_steps)]
        except TrainingInterrupted:
            batches = None
        except StopIteration:
            raise ConfigError(
                f"the training data ended at iteration {self.iter}: dataloader.train and its "
                "sampler must never end"
            ) from None
        number = self._signal_of_any_rank()
        if not number and batches is not None:
            return batches
        if isinstance(self.data_loader, StreamLoader):  # some ranks have read batches, others none
            self.data_loader.batches_read = position
        if self.iter > self.start_iter and self.save_on_stop is not None:
            finished = self.iter - 1
            self.iter = finished  # the checkpoint has the state after that iteration
            self.save_on_stop(finished)
            logging.getLogger(__name__).warning(
                "Stopped by a signal after iteration %d; continue with --resume", finished
            )
        raise TrainingInterrupted(number, is_agreed=True)

    def _signal_of_any_rank(self) -> int:
        """Return the number of a signal that any rank got, 0 if none did (a collective)."""
        number = self.stop.received or 0
        if comm.get_world_size() == 1:
            return number
        shared = torch.tensor(number, device=self._device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared)

    def _gradient_sync(self, is_last: bool) -> AbstractContextManager[Any]:
        """Average DDP's gradients over ranks only in the last backward pass of an update."""
        if isinstance(self.model, DistributedDataParallel) and not is_last:
            return self.model.no_sync()
        return nullcontext()

    def _backward(self, batch: Sequence[Any], weight: float) -> dict[str, Tensor]:
        """Run forward and backward pass of one batch; return its weighted losses, detached.

        Raises:
            NonFiniteLossError: a loss is not finite, or the model failed on non-finite outputs.
        """
        autocast: AbstractContextManager[Any] = nullcontext()
        if self.amp_dtype is not None:
            autocast = torch.autocast(self._device.type, dtype=self.amp_dtype)
        try:
            with autocast:
                losses = self.model(batch)
        except (ValueError, AssertionError) as error:
            if not is_divergence(error, self.model):
                raise
            images = ", ".join(describe_record(record) for record in batch)
            raise NonFiniteLossError(
                f"the model's outputs are not finite at iteration {self.iter}: {error}. The "
                f"weights were not updated. Images of this rank: {images}. Look at them, at the "
                "learning rate and at what else the config changes"
            ) from error
        if isinstance(losses, Tensor):
            losses = {"total_loss": losses}
        self._stop_unless_finite(losses, batch)
        if weight != 1.0:
            losses = {name: value * weight for name, value in losses.items()}
        total = torch.stack(
            [value.float() if value.dtype != torch.float64 else value for value in losses.values()]
        ).sum()
        self.grad_scaler.scale(total).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _weights(self, batches: Sequence[Any]) -> list[float]:
        """Return the weight of each micro-batch's losses."""
        if len(batches) == 1:
            return [1.0]
        if self.grad_accum_weighting == "images":
            return [1.0 / len(batches)] * len(batches)
        return box_weights(batches, self._device)

    def _stop_unless_finite(self, losses: Mapping[str, Tensor], batch: Sequence[Any]) -> None:
        """Raise on all ranks if a loss of any rank is not finite.

        A rank that raised alone would leave the others in the backward pass, waiting for its
        gradients.
        """
        values = torch.stack([value.detach().double() for value in losses.values()])
        finite = torch.isfinite(values)
        all_finite = finite.all().double()
        if comm.get_world_size() > 1:
            dist.all_reduce(all_finite, op=dist.ReduceOp.MIN)
        if bool(all_finite):
            return
        found = {
            name: float(value)
            for name, value, good in zip(losses, values.tolist(), finite.tolist(), strict=True)
            if not good
        }
        reports = comm.all_gather((found, [describe_record(r) for r in batch] if found else []))
        raise NonFiniteLossError(loss_report(self.iter, reports))

    def _clip_and_check(self, batches: Sequence[Any]) -> float:
        """Clip the gradient and return its norm before clipping.

        DDP's gradients are equal on all ranks, so no exchange is needed for all to raise.

        Raises:
            NonFiniteLossError: the norm is not finite. Under float16 the scaler skips such an
                update and lowers its scale instead.
        """
        self.grad_scaler.unscale_(self.optimizer)
        parameters = [
            p
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if not parameters:
            return 0.0
        norm = float(clip_gradients(parameters, **(self.clip_grad or {})))
        if not self.grad_scaler.is_enabled() and not torch.isfinite(torch.tensor(norm)):
            images = [describe_record(record) for batch in batches for record in batch]
            raise NonFiniteLossError(
                f"the gradient is not finite at iteration {self.iter} (norm {norm}), although all "
                "losses are; the weights were not updated. Parameters: "
                f"{bad_gradients(self.model)}. Images of this rank: {', '.join(images)}"
            )
        return norm

    def _update(self) -> None:
        """Update the weights; float16's scaler skips the update if the gradient is not finite.

        Raises:
            NonFiniteLossError: too many updates in a row were skipped, so nothing is being trained;
                raised on all ranks, whose gradients are equal.
        """
        before = self.grad_scaler.get_scale()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if not self.grad_scaler.is_enabled():
            return
        is_skipped = self.grad_scaler.get_scale() < before
        self._skipped = self._skipped + 1 if is_skipped else 0
        if self._skipped >= _MAX_SKIPPED:
            raise NonFiniteLossError(
                f"the gradient was not finite in {self._skipped} updates in a row, up to iteration "
                f"{self.iter}, although the float16 loss scale was lowered to "
                f"{self.grad_scaler.get_scale():.3g}; these updates were skipped. Parameters: "
                f"{bad_gradients(self.model)}. Use train.amp.dtype=bfloat16 or no mixed precision"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of trainer, hooks, optimizer, gradient scaler and recent metrics."""
        state = super().state_dict()
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        if hasattr(self, "storage"):
            state["metrics"] = metrics_state(self.storage)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned.

        The optimizer's hyperparameters (learning rate, weight decay, ...) stay those of the current
        config; differences from the saved run are logged.

        Raises:
            CheckpointMismatchError, ValueError: the state is of another optimizer.
        """
        state = dict(state_dict)
        load_optimizer_state(self.optimizer, state.pop("optimizer"))
        super(SimpleTrainer, self).load_state_dict(state)
        scaler = state_dict.get("grad_scaler")
        self._loaded_metrics = dict(state_dict.get("metrics", {}))
        if self.grad_scaler.is_enabled() and scaler:
            self.grad_scaler.load_state_dict(scaler)
        elif self.grad_scaler.is_enabled():
            logging.getLogger(__name__).warning(
                "The checkpoint has no state of the gradient scaler; the loss scale is reset"
            )
