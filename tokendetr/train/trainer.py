"""The training step: mixed precision, accumulation, clipping, and a stop before a bad update."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tokendetr.data.stream import describe_record
from tokendetr.errors import NonFiniteLossError

__all__ = ["Trainer", "TrainingInterrupted", "parse_dtype"]

_DTYPES = {
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


class TrainingInterrupted(SystemExit):
    """The process was asked to stop and a checkpoint was saved."""


def parse_dtype(name: str) -> torch.dtype:
    """The dtype of ``train.amp.dtype``.

    Raises:
        ValueError: it is neither float16 nor bfloat16.
    """
    if name not in _DTYPES:
        raise ValueError(f"train.amp.dtype={name!r}: use float16 or bfloat16")
    return _DTYPES[name]


class Trainer(SimpleTrainer):
    """detectron2's trainer with a step of its own.

    One step reads ``grad_accum_steps`` batches, sums up their gradients and updates once. Before
    every backward pass all ranks agree whether every loss of every rank is finite, and before the
    update whether the gradient is; if not, all of them raise.

    Args:
        model: maps a batch to a dict of losses; may be wrapped in DDP.
        data_loader: an endless iterable of batches (lists of records).
        optimizer: the optimizer.
        amp_dtype: float16 or bfloat16 to run the forward pass under autocast; float16 also scales
            the loss. None: no mixed precision.
        clip_grad: arguments of ``torch.nn.utils.clip_grad_norm_``, or None.
        grad_accum_steps: batches per update.
        grad_accum_weighting: how the losses of those batches are weighted. ``"boxes"``: by number
            of annotated boxes, as one large batch is by a criterion that divides by that number
            (those of detection transformers do). ``"images"``: all alike.

    Raises:
        ValueError: an argument out of range.
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
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        if grad_accum_steps < 1:
            raise ValueError(f"train.grad_accum_steps={grad_accum_steps}: must be at least 1")
        if grad_accum_weighting not in ("boxes", "images"):
            raise ValueError(
                f"train.grad_accum_weighting={grad_accum_weighting!r}: use 'boxes' or 'images'"
            )
        self.amp_dtype = amp_dtype
        self.clip_grad = None if clip_grad is None else dict(clip_grad)
        self.grad_accum_steps = grad_accum_steps
        self.grad_accum_weighting = grad_accum_weighting
        self.stop_requested = False
        self._device = next(model.parameters()).device
        scales = amp_dtype == torch.float16
        self.grad_scaler = torch.amp.GradScaler(self._device.type, enabled=scales)
        self._batches: Any = None

    def run_step(self) -> None:
        """One update."""
        assert self.model.training, "the model was left in evaluation mode by a hook"
        start = time.perf_counter()
        if self._batches is None:
            self._batches = iter(self.data_loader)
        batches = [next(self._batches) for _ in range(self.grad_accum_steps)]
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
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _gradient_sync(self, is_last: bool) -> AbstractContextManager[Any]:
        """DDP averages gradients over ranks in the last backward pass alone."""
        if isinstance(self.model, DistributedDataParallel) and not is_last:
            return self.model.no_sync()
        return nullcontext()

    def _backward(self, batch: Sequence[Any], weight: float) -> dict[str, Tensor]:
        """Forward and backward pass of one batch; returns its weighted losses, detached."""
        autocast: AbstractContextManager[Any] = nullcontext()
        if self.amp_dtype is not None:
            autocast = torch.autocast(self._device.type, dtype=self.amp_dtype)
        with autocast:
            losses = self.model(batch)
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
        """The share of each micro-batch in the losses of an update; the shares add up to 1.

        A criterion divides by the number of boxes of a batch over all ranks, at least 1 per rank.
        """
        if len(batches) == 1:
            return [1.0]
        if self.grad_accum_weighting == "images":
            return [1.0 / len(batches)] * len(batches)
        counts = torch.tensor([float(_count_boxes(b)) for b in batches], dtype=torch.float64)
        ranks = comm.get_world_size()
        if ranks > 1:
            shared = counts.to(self._device)
            dist.all_reduce(shared)
            counts = shared.cpu() / ranks
        whole = max(float(counts.sum()), 1.0)
        return [max(float(count), 1.0) / whole for count in counts]

    def _stop_unless_finite(self, losses: Mapping[str, Tensor], batch: Sequence[Any]) -> None:
        """Raise on all ranks if a loss of any rank is not finite."""
        values = torch.stack([value.detach().double() for value in losses.values()])
        finite = torch.isfinite(values)
        # One message for both questions of a step: is anything wrong, shall we stop.
        flags = torch.stack(
            [finite.all().double(), finite.new_tensor(not self.stop_requested).double()]
        )
        if comm.get_world_size() > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MIN)
        all_finite, go_on = flags.tolist()
        self.stop_requested = go_on == 0.0
        if all_finite:
            return
        found = {
            name: float(value)
            for name, value, good in zip(losses, values.tolist(), finite.tolist(), strict=True)
            if not good
        }
        reports = comm.all_gather((found, [describe_record(r) for r in batch] if found else []))
        raise NonFiniteLossError(_non_finite_message(self.iter, reports))

    def _clip_and_check(self, batches: Sequence[Any]) -> float:
        """Clip gradients; their norm before that.

        Raises:
            NonFiniteLossError: it is not finite. Under float16 the scaler skips such an update
                and lowers its scale instead.
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
        options = {"max_norm": float("inf"), **(self.clip_grad or {})}
        norm = float(_clip(parameters, **options))
        if not self.grad_scaler.is_enabled() and not torch.isfinite(torch.tensor(norm)):
            images = [describe_record(record) for batch in batches for record in batch]
            raise NonFiniteLossError(
                f"the gradient is not finite at iteration {self.iter} (norm {norm}), although all "
                f"losses are; the weights were not updated. Parameters: {self._bad_gradients()}. "
                f"Images of this rank: {', '.join(images)}"
            )
        return norm

    def _bad_gradients(self) -> str:
        names = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return f"{', '.join(names[:5]) or 'none alone, their sum overflows'}{more}"

    def state_dict(self) -> dict[str, Any]:
        """The state of trainer, hooks, optimizer and gradient scaler."""
        state = super().state_dict()
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        scaler = state_dict.get("grad_scaler")
        if self.grad_scaler.is_enabled() and scaler:
            self.grad_scaler.load_state_dict(scaler)
        elif self.grad_scaler.is_enabled():
            logging.getLogger(__name__).warning(
                "The checkpoint has no state of the gradient scaler; it starts anew"
            )


def _clip(parameters: list[nn.Parameter], max_norm: float, **options: Any) -> Tensor:
    """``clip_grad_norm_`` that only measures when there is nothing to clip."""
    if max_norm == float("inf"):
        gradients = [p.grad for p in parameters if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm, **options)


def _count_boxes(batch: Iterable[Any]) -> int:
    return sum(len(r["instances"]) for r in batch if isinstance(r, Mapping) and "instances" in r)


def _non_finite_message(
    iteration: int, reports: Sequence[tuple[dict[str, float], list[str]]]
) -> str:
    lines = [f"a loss is not finite at iteration {iteration}; the weights were not updated."]
    for rank, (found, images) in enumerate(reports):
        if found:
            losses = ", ".join(f"{name} = {value}" for name, value in found.items())
            lines.append(f"Rank {rank}: {losses}; images: {', '.join(images)}")
    lines.append(
        "Look at these images and their boxes; otherwise lower the learning rate, clip gradients "
        "(train.clip_grad.enabled=True) or use train.amp.dtype=bfloat16."
    )
    return "\n".join(lines)
