"""Allowed ranges of the numbers of a config."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["BY_NAME", "RANGES", "Range", "range_of"]


@dataclass(frozen=True)
class Range:
    """Allowed range of a number.

    Attributes:
        what: description for messages.
        holds: returns whether a number is in the range.
        is_count: the number must also be an integer.
        may_be_infinite: infinity is allowed and means no limit.
        may_be_text: a text is allowed instead of a number.
    """

    what: str
    holds: Callable[[float], bool]
    is_count: bool = False
    may_be_infinite: bool = False
    may_be_text: bool = False


_POSITIVE = Range("above 0", lambda x: x > 0)
_LIMIT = Range("above 0", lambda x: x > 0, may_be_infinite=True)
_NOT_NEGATIVE = Range("0 or above", lambda x: x >= 0)
_NUMBER_OR_TEXT = Range("0 or above", lambda x: x >= 0, may_be_text=True)
_SHARE = Range("between 0 and 1", lambda x: 0 <= x <= 1)
_BELOW_ONE = Range("at least 0 and below 1", lambda x: 0 <= x < 1)
_COUNT = Range("a whole number above 0", lambda x: x > 0, is_count=True)
_PERIOD = Range("a whole number, 0 for off", lambda x: x >= 0, is_count=True)

_LAYERS = Range("a whole number, 0 or above", lambda x: x >= 0, is_count=True)
# Each is a process: a typing error must not start a million.
_WORKERS = Range("a whole number from 0 to 4096", lambda x: 0 <= x <= 4096, is_count=True)

_SEED = Range(
    "a whole number below 2^31, negative for a random one",
    lambda x: abs(x) < 1 << 31,
    is_count=True,
)

RANGES: dict[str, Range] = {
    "train.seed": _SEED,
    "train.max_iter": _COUNT,
    "train.eval_period": _PERIOD,
    "train.log_period": _PERIOD,
    "train.checkpointer.period": _PERIOD,
    "train.checkpointer.max_to_keep": _PERIOD,
    "train.grad_accum_steps": _COUNT,
    "train.reference_batch_size": _COUNT,
    # 0 would stop all learning, and a negative norm would reverse every gradient.
    "train.clip_grad.params.max_norm": _LIMIT,
    "train.clip_grad.params.norm_type": _LIMIT,
    "train.model_ema.decay": _BELOW_ONE,  # at 1 the average would stay at the initial weights
    "train.distributed.rendezvous_timeout": _POSITIVE,
    "train.distributed.collective_timeout": _POSITIVE,
    "lr_multiplier.warmup_length": _BELOW_ONE,
    "dataloader.train.total_batch_size": _COUNT,
    "dataloader.train.num_workers": _WORKERS,
    "dataloader.test.num_workers": _WORKERS,
    "dataloader.test.batch_size": _COUNT,
    "dataloader.evaluator.max_dets_per_image": _COUNT,
    "model.num_classes": _COUNT,
    "model.num_queries": _COUNT,
    "model.select_box_nums_for_evaluation": _COUNT,
    "model.dn_number": _PERIOD,
    "model.transformer.decoder.num_layers": _COUNT,
}
"""Key -> range; keys that a config lacks, or whose value is not a number, are not checked."""

BY_NAME: dict[str, dict[str, Range]] = {
    "model": {
        "alpha": _SHARE,
        "attn_dropout": _BELOW_ONE,
        "box_noise_scale": _NOT_NEGATIVE,
        "cost_bbox": _NOT_NEGATIVE,
        "cost_class": _NOT_NEGATIVE,
        "cost_giou": _NOT_NEGATIVE,
        "drop_path_rate": _BELOW_ONE,
        "dropout": _BELOW_ONE,
        "eos_coef": _NOT_NEGATIVE,
        "ffn_dropout": _BELOW_ONE,
        "gamma": _NOT_NEGATIVE,
        "label_noise_prob": _SHARE,
        "label_noise_ratio": _SHARE,
        "lambda_one2many": _NOT_NEGATIVE,
        "num_layers": _LAYERS,
        "pixel_std": _POSITIVE,
        "temperature": _POSITIVE,
        "two_stage_num_proposals": _COUNT,
    },
    "dataloader": {
        "crop_size": _POSITIVE,
        "max_dets_per_image": _COUNT,
        "max_scale": _POSITIVE,
        "max_size": _POSITIVE,
        "min_scale": _POSITIVE,
        "prefetch_factor": _COUNT,
        "prob": _SHARE,
        "repeat_threshold": _NOT_NEGATIVE,
        "short_edge_length": _POSITIVE,
        "timeout": _NOT_NEGATIVE,
    },
    # A negative learning rate or factor would maximize the loss.
    "optimizer": {"betas": _BELOW_ONE, "": _NUMBER_OR_TEXT},
    "lr_multiplier": {"": _NUMBER_OR_TEXT},
}
"""Part of the config -> name -> range, at any depth of that part; the numbers of a list go by the
list's name, and "" stands for all other names."""


def range_of(part: str, key: str) -> Range | None:
    """Return the range of a key by its name and part of the config; None if any value is fine."""
    names = [name for name in key.split(".") if not name.isdigit()]
    # A negative weight would maximize its loss.
    if part == "model" and ("weight_dict" in names or names[-1].endswith("_weight")):
        return _NOT_NEGATIVE
    return BY_NAME[part].get(names[-1], BY_NAME[part].get(""))
