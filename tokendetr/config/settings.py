"""Values that would be accepted without a word and spoil a run, refused before it is built."""

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from tokendetr.errors import ConfigError

__all__ = ["check_settings"]


@dataclass(frozen=True)
class _Range:
    """What a number must be.

    Attributes:
        what: for the message.
        holds: whether a finite number is in the range.
        is_count: it must be whole as well.
    """

    what: str
    holds: Callable[[float], bool]
    is_count: bool = False


_POSITIVE = _Range("above 0", lambda x: x > 0)
_NOT_NEGATIVE = _Range("0 or above", lambda x: x >= 0)
_SHARE = _Range("between 0 and 1", lambda x: 0 <= x <= 1)
_BELOW_ONE = _Range("at least 0 and below 1", lambda x: 0 <= x < 1)
_COUNT = _Range("a whole number above 0", lambda x: x > 0, is_count=True)
_PERIOD = _Range("a whole number, 0 for off", lambda x: x >= 0, is_count=True)

RANGES: dict[str, _Range] = {
    "train.max_iter": _COUNT,
    "train.eval_period": _PERIOD,
    "train.log_period": _PERIOD,
    "train.checkpointer.period": _PERIOD,
    "train.checkpointer.max_to_keep": _PERIOD,
    "train.grad_accum_steps": _COUNT,
    "train.reference_batch_size": _COUNT,
    # 0 would stop all learning, and a negative norm turn every gradient round.
    "train.clip_grad.params.max_norm": _POSITIVE,
    "train.clip_grad.params.norm_type": _POSITIVE,
    "train.model_ema.decay": _SHARE,
    "train.distributed.rendezvous_timeout": _POSITIVE,
    "train.distributed.collective_timeout": _POSITIVE,
    "optimizer.lr": _NOT_NEGATIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.eps": _NOT_NEGATIVE,
    "optimizer.momentum": _NOT_NEGATIVE,
    "optimizer.params.weight_decay_norm": _NOT_NEGATIVE,
    "lr_multiplier.warmup_length": _BELOW_ONE,
    "lr_multiplier.warmup_factor": _NOT_NEGATIVE,
    "dataloader.train.total_batch_size": _COUNT,
    "dataloader.train.num_workers": _PERIOD,
    "dataloader.test.num_workers": _PERIOD,
    "model.num_classes": _COUNT,
    "model.num_queries": _COUNT,
    "model.select_box_nums_for_evaluation": _COUNT,
    "model.dn_number": _PERIOD,
    "model.label_noise_ratio": _SHARE,
    "model.box_noise_scale": _NOT_NEGATIVE,
    "model.criterion.eos_coef": _NOT_NEGATIVE,
    "model.criterion.alpha": _SHARE,
    "model.criterion.gamma": _NOT_NEGATIVE,
}
"""Ranges by key; keys that a config lacks, or where it holds no number, are left alone."""

_ANYWHERE: dict[str, _Range] = {
    "attn_dropout": _BELOW_ONE,
    "ffn_dropout": _BELOW_ONE,
    "dropout": _BELOW_ONE,
    "drop_path_rate": _BELOW_ONE,
    "cost_class": _NOT_NEGATIVE,
    "cost_bbox": _NOT_NEGATIVE,
    "cost_giou": _NOT_NEGATIVE,
}
"""Ranges of arguments by their names, wherever in ``model`` they are."""


def check_settings(cfg: DictConfig) -> None:
    """Check ranges, and options that only go together; whole floats of counts become integers.

    Raises:
        ConfigError: naming every key with its value and its range.
    """
    faults = [
        fault
        for key, wanted in RANGES.items()
        if (fault := _fault(cfg, key, wanted, OmegaConf.select(cfg, key, default=None)))
    ]
    for key, value in _leaves(cfg.get("model", None), "model"):
        name = key.rpartition(".")[2]
        wanted = _ANYWHERE.get(name)
        if ".weight_dict." in key:
            wanted = _NOT_NEGATIVE  # a negative weight makes a loss grow
        if wanted is not None and (fault := _fault(cfg, key, wanted, value)):
            faults.append(fault)
    faults += _contradictions(cfg)
    if faults:
        raise ConfigError("; ".join(faults))


def _fault(cfg: DictConfig, key: str, wanted: _Range, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    is_whole = not wanted.is_count or float(value).is_integer()
    if math.isnan(value) or not is_whole or not wanted.holds(value):
        return f"{key}={value} must be {wanted.what}"
    if wanted.is_count and isinstance(value, float):
        OmegaConf.update(cfg, key, int(value))
    return None


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, DictConfig):
        for key in map(str, node):
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                yield from _leaves(node[key], f"{prefix}.{key}")
    elif isinstance(node, ListConfig):
        for index, item in enumerate(node):
            yield from _leaves(item, f"{prefix}.{index}")
    else:
        yield prefix, node


def _contradictions(cfg: DictConfig) -> Iterator[str]:
    """Options that something deep in another package would refuse later, in its own words."""
    for part in ("train", "test"):
        node = OmegaConf.select(cfg, f"dataloader.{part}", default=None)
        if not isinstance(node, DictConfig) or node.get("num_workers", None) != 0:
            continue
        for option in ("prefetch_factor", "persistent_workers"):
            if node.get(option, None):
                yield (
                    f"dataloader.{part}.{option}={node[option]} needs loader processes: set "
                    f"dataloader.{part}.num_workers above 0, or leave it out"
                )
    batch = OmegaConf.select(cfg, "dataloader.train.total_batch_size", default=None)
    steps = OmegaConf.select(cfg, "train.grad_accum_steps", default=1)
    if isinstance(batch, int) and isinstance(steps, int) and steps > 0 and batch % steps:
        yield (
            f"dataloader.train.total_batch_size={batch} cannot be shared out over "
            f"train.grad_accum_steps={steps} micro-batches: make it a multiple"
        )
    if OmegaConf.select(cfg, "train.wandb.enabled", default=False) and not _is_installed("wandb"):
        yield "train.wandb.enabled=True needs wandb: pip install wandb"


def _is_installed(name: str) -> bool:
    """Whether a package can be imported; one that is broken cannot."""
    if importlib.util.find_spec(name) is None:
        return False
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
