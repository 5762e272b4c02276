"""Exponential moving average of a model's weights, as a training hook."""

import copy
import itertools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine.train_loop import HookBase
from torch import nn
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)


class EMAState:
    """Averaged parameters and buffers of a model by name, checkpointable."""

    def __init__(self) -> None:
        self.state: dict[str, torch.Tensor] = {}

    @classmethod
    def FromModel(cls, model: nn.Module, device: torch.device | str | None = "") -> "EMAState":
        """Return a copy of the model's present state, on ``device`` if one is given."""
        state = cls()
        state.save_from(model, device)
        return state

    def save_from(self, model: nn.Module, device: torch.device | str | None = "") -> None:
        """Copy the model's present state into this object."""
        for name, value in self.get_model_state_iterator(model):
            value = value.detach().clone()
            self.state[name] = value.to(device) if device else value

    def apply_to(self, model: nn.Module) -> None:
        """Write the state into the model.

        Raises:
            KeyError: the model has a tensor that this state lacks.
        """
        missing = [n for n, _ in self.get_model_state_iterator(model) if n not in self.state]
        if missing:
            raise KeyError(
                f"the EMA state lacks {len(missing)} tensors of the model, e.g. {missing[:3]};"
                " it was saved from another model or never filled"
            )
        with torch.no_grad():
            for name, value in self.get_model_state_iterator(model):
                value.copy_(self.state[name])

    @contextmanager
    def apply_and_restore(self, model: nn.Module) -> Iterator["EMAState"]:
        """Run a block with this state in the model; yields the model's own state."""
        own_state = EMAState.FromModel(model, self.device)
        self.apply_to(model)
        try:
            yield own_state
        finally:
            own_state.apply_to(model)

    def get_ema_model(self, model: nn.Module) -> nn.Module:
        """Return a copy of the model that holds this state."""
        averaged = copy.deepcopy(model)
        self.apply_to(averaged)
        return averaged

    @property
    def device(self) -> torch.device | None:
        """Device of the state, None before it is filled."""
        return next(iter(self.state.values())).device if self.state else None

    def to(self, device: torch.device | str) -> "EMAState":
        """Move the state; returns itself."""
        for name, value in self.state.items():
            self.state[name] = value.to(device)
        return self

    def has_inited(self) -> bool:
        """Return True if the state is filled."""
        return bool(self.state)

    def clear(self) -> "EMAState":
        """Empty the state; returns itself."""
        self.state.clear()
        return self

    def get_model_state_iterator(self, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Iterate over the names and tensors of parameters, then buffers; shared tensors once."""
        return itertools.chain(model.named_parameters(), model.named_buffers())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the averaged tensors by name."""
        return self.state

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], strict: bool = True) -> Any:
        """Replace the state by that of a checkpoint; :meth:`apply_to` checks that it fits."""
        self.clear()
        self.state.update(state_dict)
        return nn.modules.module._IncompatibleKeys(missing_keys=[], unexpected_keys=[])

    def __repr__(self) -> str:
        return f"EMAState(state=[{','.join(self.state)}])"


class EMAUpdater:
    """Update an :class:`EMAState` by ``ema = decay * ema + (1 - decay) * model``.

    Parameters and floating buffers are averaged; integer buffers take the model's value.

    Args:
        state: the average to update.
        decay: share of the old average, in [0, 1].
        device: device of the average; the model's when empty.
    """

    def __init__(self, state: EMAState, decay: float = 0.999, device: str = "") -> None:
        self.decay = decay
        self.device = device
        self.state = state

    def init_state(self, model: nn.Module) -> None:
        """Start from the model's present state."""
        self.state.clear()
        self.state.save_from(model, self.device)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the model's present state."""
        averaged, current = [], []
        for name, value in self.state.get_model_state_iterator(model):
            average = self.state.state[name]
            value = value.to(average.device)
            if value.is_floating_point() or value.is_complex():
                averaged.append(average)
                current.append(value)
            else:
                average.copy_(value)
        torch._foreach_mul_(averaged, self.decay)
        torch._foreach_add_(averaged, current, alpha=1 - self.decay)


def _remove_ddp(model: nn.Module) -> nn.Module:
    """Return the model inside its distributed wrapper, if it has one."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def may_build_model_ema(cfg: Any, model: nn.Module) -> None:
    """Give the model an empty ``ema_state`` if ``cfg.train.model_ema.enabled``.

    Raises:
        ValueError: the model has an ``ema_state`` already.
    """
    if not cfg.train.model_ema.enabled:
        return
    model = _remove_ddp(model)
    if hasattr(model, "ema_state"):
        raise ValueError("the model has an attribute `ema_state` already; it is reserved for EMA")
    model.ema_state = EMAState()  # type: ignore[assignment]
    logger.info("Using Model EMA.")


def may_get_ema_checkpointer(cfg: Any, model: nn.Module) -> dict[str, EMAState]:
    """Return the EMA state for a checkpointer if EMA is enabled."""
    if not cfg.train.model_ema.enabled:
        return {}
    return {"ema_state": get_model_ema_state(model)}


def get_model_ema_state(model: nn.Module) -> EMAState:
    """Return the EMA state of a model.

    Raises:
        ValueError: it has none.
    """
    state = getattr(_remove_ddp(model), "ema_state", None)
    if not isinstance(state, EMAState):
        raise ValueError("the model has no EMA state; call may_build_model_ema(cfg, model) first")
    return state


def apply_model_ema(
    model: nn.Module, state: EMAState | None = None, save_current: bool = False
) -> EMAState | None:
    """Write the average (or ``state``) into the model permanently.

    Returns:
        The model's own state before, with ``save_current``; else None.
    """
    state = get_model_ema_state(model) if state is None else state
    model = _remove_ddp(model)
    own_state = EMAState.FromModel(model, state.device) if save_current else None
    state.apply_to(model)
    return own_state


@contextmanager
def apply_model_ema_and_restore(
    model: nn.Module, state: EMAState | None = None
) -> Iterator[EMAState]:
    """Run a block with the average (or ``state``) in the model; yields the model's own state."""
    state = get_model_ema_state(model) if state is None else state
    with state.apply_and_restore(_remove_ddp(model)) as own_state:
        yield own_state


class EMAHook(HookBase):
    """Update the model's EMA state after every training step.

    Args:
        cfg: the whole config; reads ``train.model_ema`` (enabled, decay, device) and
            ``model.device``.
        model: model that :func:`may_build_model_ema` was called on.

    Raises:
        ValueError: EMA is disabled, or the model has no EMA state.
    """

    def __init__(self, cfg: Any, model: nn.Module) -> None:
        if not cfg.train.model_ema.enabled:
            raise ValueError("EMAHook needs train.model_ema.enabled=True")
        self.ema = get_model_ema_state(model)
        self.model = _remove_ddp(model)
        self.device = cfg.train.model_ema.device or cfg.model.device
        self.ema_updater = EMAUpdater(self.ema, decay=cfg.train.model_ema.decay, device=self.device)

    def before_train(self) -> None:
        """Start from the model, or continue from the state of a checkpoint."""
        if self.ema.has_inited():
            self.ema.to(self.device)
        else:
            self.ema_updater.init_state(self.model)

    def after_step(self) -> None:
        """Update the average with the model's present state."""
        self.ema_updater.update(self.model)
