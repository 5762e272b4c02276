"""Refuse values that would otherwise be accepted silently and spoil a run."""

import importlib
import importlib.util
import math
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from tokendetr.config.ranges import BY_NAME, RANGES, Range, range_of
from tokendetr.errors import ConfigError
from tokendetr.layers.precision import parse_dtype

__all__ = ["check_settings"]


_MAY_BE_EMPTY = (
    "train.checkpointer.max_to_keep",
    "train.clip_grad.params.max_norm",
    "train.clip_grad.params.norm_type",
)
_GROUPS = [
    f"train.{name}"
    for name in (
        "amp",
        "checkpointer",
        "clip_grad",
        "clip_grad.params",
        "data_files",
        "ddp",
        "distributed",
        "fast_dev_run",
        "model_ema",
        "wandb",
    )
]
_IMAGE_FORMATS = ("RGB", "BGR", "L", "YUV-BT.601", "YCbCr", "HSV", "LAB", "CMYK", "RGBA", "F", "I")
_READER = "get_detection_dataset_dicts"
_TASKS = ("bbox", "segm", "keypoints")


def check_settings(cfg: DictConfig) -> None:
    """Check ranges and combinations of options; counts that are integral floats become integers.

    Raises:
        ConfigError: the message names every faulty key with its value and range.
    """
    if faults := list(_broken_groups(cfg)):
        raise ConfigError("; ".join(faults))
    faults = [
        fault
        for key, wanted in RANGES.items()
        if (fault := _type_fault(cfg, key, wanted))
        or (fault := _range_fault(cfg, key, wanted, _selected(cfg, key)))
    ]
    for part in BY_NAME:
        for key, value in _leaves(cfg.get(part, None), part):
            wanted = range_of(part, key)
            if key not in RANGES and wanted is not None:
                faults += filter(None, [_range_fault(cfg, key, wanted, value)])
    faults += _contradictions(cfg)
    if faults:
        raise ConfigError("; ".join(faults))


def _selected(cfg: DictConfig, key: str) -> Any:
    """Return the value of a key, also within a list of evaluators; None if it is missing."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent, default=None)
    return node.get(name, None) if isinstance(node, DictConfig) else None


def _broken_groups(cfg: DictConfig) -> Iterator[str]:
    """Yield a sentence for each key that must be a group of options and is not."""
    for key in _GROUPS:
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, parent, default=None)
        if isinstance(node, DictConfig) and name in node and not OmegaConf.is_dict(node[name]):
            yield f"{key}={node[name]} must be a group of options"


def _type_fault(cfg: DictConfig, key: str, wanted: Range) -> str | None:
    """Return what is wrong with the value of a key of ``train`` that must be a number."""
    if not key.startswith("train.") or key in _MAY_BE_EMPTY:
        return None
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent, default=None)
    if not isinstance(node, DictConfig) or name not in node:
        return None
    value = node[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{key}={value} must be {wanted.what}"
    return None


def _range_fault(cfg: DictConfig, key: str, wanted: Range, value: Any) -> str | None:
    """Return what is wrong with a number; store a count that is an integral float as an integer."""
    if isinstance(value, str) and not wanted.may_be_text:
        return f"{key}={value} must be {wanted.what}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    is_whole = not wanted.is_count or float(value).is_integer()
    is_number = math.isfinite(value) or (wanted.may_be_infinite and not math.isnan(value))
    if not is_number or not is_whole or not wanted.holds(value):
        return f"{key}={value} must be {wanted.what}"
    if wanted.is_count and isinstance(value, float):
        OmegaConf.update(cfg, key, int(value))
    return None


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield key and value of every value below a node that is neither missing nor interpolated."""
    if isinstance(node, DictConfig):
        for key in list[Any](node):
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                yield from _leaves(node[key], f"{prefix}.{key}")
    elif isinstance(node, ListConfig):
        for index, item in enumerate(node):
            yield from _leaves(item, f"{prefix}.{index}")
    else:
        yield prefix, node


def _contradictions(cfg: DictConfig) -> Iterator[str]:
    """Yield combinations of options that other packages would refuse later, or misinterpret."""
    for part in ("train", "test"):
        yield from _idle_loader_options(cfg, part)
        yield from _unread_records(cfg, part)
    yield from _unknown_precision(cfg)
    yield from _uneven_micro_batches(cfg)
    yield from _unquoted_roots(cfg)
    yield from _empty_clipping(cfg)
    yield from _evaluator_faults(cfg)
    if OmegaConf.select(cfg, "train.wandb.enabled", default=False) and not _is_installed("wandb"):
        yield "train.wandb.enabled=True needs wandb: pip install wandb"


def _idle_loader_options(cfg: DictConfig, part: str) -> Iterator[str]:
    node = OmegaConf.select(cfg, f"dataloader.{part}", default=None)
    if not isinstance(node, DictConfig) or node.get("num_workers", None) != 0:
        return
    for option in ("prefetch_factor", "persistent_workers", "timeout"):
        if node.get(option, None):
            yield (
                f"dataloader.{part}.{option}={node[option]} needs loader processes: set "
                f"dataloader.{part}.num_workers above 0, or leave it out"
            )


def _uneven_micro_batches(cfg: DictConfig) -> Iterator[str]:
    batch = OmegaConf.select(cfg, "dataloader.train.total_batch_size", default=None)
    steps = OmegaConf.select(cfg, "train.grad_accum_steps", default=1)
    if isinstance(batch, int) and isinstance(steps, int) and steps > 0 and batch % steps:
        yield (
            f"dataloader.train.total_batch_size={batch} is not divisible by "
            f"train.grad_accum_steps={steps} micro-batches: make it a multiple"
        )


def _unquoted_roots(cfg: DictConfig) -> Iterator[str]:
    roots = OmegaConf.select(cfg, "train.image_roots", default=None) or ()
    for root in [roots] if isinstance(roots, str) else roots:
        if not isinstance(root, str):
            yield f"train.image_roots has {root!r}, which is not a folder: write it in quotes"


def _empty_clipping(cfg: DictConfig) -> Iterator[str]:
    clip = OmegaConf.select(cfg, "train.clip_grad", default=None)
    if clip is None or not clip.get("enabled", False):
        return
    if clip.params.get("max_norm", 0) is None:
        yield "train.clip_grad.params.max_norm has no value: give a number, or inf to only measure"
    if clip.params.get("norm_type", 0) is None:
        yield "train.clip_grad.params.norm_type has no value: give a number, such as 2"


def _evaluator_faults(cfg: DictConfig) -> Iterator[str]:
    evaluator = OmegaConf.select(cfg, "dataloader.evaluator", default=None)
    if not isinstance(evaluator, DictConfig) or not _name(evaluator).endswith("COCOEvaluator"):
        return
    tasks = evaluator.get("tasks", None) or ()
    for task in [tasks] if isinstance(tasks, str) else tasks:
        if task not in _TASKS:
            yield f"dataloader.evaluator.tasks={task}: use {', '.join(_TASKS)}"
    limits = evaluator.get("max_dets_per_image", None)
    if isinstance(limits, ListConfig) and len(limits) != 3:
        yield f"dataloader.evaluator.max_dets_per_image={limits}: give one number, or three"


def _unread_records(cfg: DictConfig, part: str) -> Iterator[str]:
    """Yield what keeps a loader of detectron2's from getting records or their images."""
    node = OmegaConf.select(cfg, f"dataloader.{part}", default=None)
    if not isinstance(node, DictConfig) or _name(node) != f"build_detection_{part}_loader":
        return
    dataset = node.get("dataset", None)
    if dataset is None and "dataset" in node:
        yield f"dataloader.{part}.dataset has no value: name the data set to read"
    form = OmegaConf.select(node, "mapper.img_format", default="RGB")
    if form is not None and form not in _IMAGE_FORMATS:
        yield (
            f"dataloader.{part}.mapper.img_format={form} is not an image format: use "
            f"{', '.join(_IMAGE_FORMATS)}"
        )
    of_files = isinstance(dataset, DictConfig) and _name(dataset) == _READER
    if of_files and node.get("mapper", None) is None:
        yield (
            f"dataloader.{part}.mapper has no value: the records of a data set need one that "
            "reads their images, such as detrex.data.DetrDatasetMapper"
        )


def _unknown_precision(cfg: DictConfig) -> Iterator[str]:
    amp = OmegaConf.select(cfg, "train.amp", default=None)
    if amp is not None and amp.get("enabled", False):
        try:
            parse_dtype(amp.get("dtype", "float16"))
        except ConfigError as error:
            yield str(error)


def _name(node: DictConfig) -> str:
    """Return the last part of a target's name."""
    target = node.get("_target_", None)
    return str(getattr(target, "__name__", target)).rpartition(".")[2]


def _is_installed(name: str) -> bool:
    """Return whether a package can be imported; a broken one cannot."""
    if importlib.util.find_spec(name) is None:
        return False
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
