"""Set up a run: logging, the saved config, seeds, DistributedDataParallel."""

import argparse
import contextlib
import filecmp
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig, OmegaConf
from torch import nn

from tokendetr.checkpoint.weights import require_checkpoint
from tokendetr.config.load import follow_output_dir
from tokendetr.config.model import check_device
from tokendetr.config.parts import require_methods
from tokendetr.config.run_folders import EVALUATED_CONFIG, TRAINED_CONFIG
from tokendetr.errors import ConfigError

__all__ = [
    "apply_fast_dev_run",
    "check_run",
    "distributed",
    "hint_learning_rate",
    "log_environment",
    "run_logging",
    "saved_config",
    "schedule_of",
    "seed_run",
]

logger = logging.getLogger("tokendetr.train")

_LOGGERS = ("detectron2", "detrex", "fvcore", "tokendetr")


def check_run(cfg: DictConfig, *, evaluation_only: bool, is_resumed: bool) -> None:
    """Check everything about a run that is known before its folder is touched.

    Raises:
        ConfigError: the config lacks a part, or a device or the folder cannot be used.
        FileNotFoundError: there are no such weights to start from.
    """
    wanted = ["model", "dataloader"]
    wanted += [] if evaluation_only else ["dataloader.train", "optimizer.params", "lr_multiplier"]
    if missing := [key for key in wanted if OmegaConf.select(cfg, key, default=None) is None]:
        raise ConfigError(f"the config has no {', '.join(missing)}")
    check_device(cfg.train.device)
    if cfg.train.model_ema.get("device", ""):
        check_device(cfg.train.model_ema.device, "train.model_ema.device")
    if cfg.train.init_checkpoint and not is_resumed:
        require_checkpoint(str(cfg.train.init_checkpoint))
    folder = str(cfg.train.output_dir or "")
    if not folder.strip() and not evaluation_only:
        raise ConfigError("train.output_dir is empty: give a folder for the run")
    if set(folder) & set("?\t\r\n"):  # its checkpoints are loaded by URL
        raise ConfigError(f"train.output_dir={folder!r} has a '?', tab or line break: rename it")


@contextlib.contextmanager
def run_logging(output_dir: str) -> Iterator[None]:
    """Log to the terminal (rank 0) and to the run's ``log.txt`` for a ``with`` block.

    The previous handlers are restored afterwards, so that several runs in one process (a notebook)
    neither write to each other's logs nor print lines twice. If a log cannot be written, on a full
    disk, lines are lost but the run continues.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(log, list(log.handlers), log.level, log.propagate) for log in loggers]
    for log in loggers:
        log.handlers = []
    # The function without upstream's cache, which returns the old handlers for a known folder.
    set_up = getattr(setup_logger, "__wrapped__", setup_logger)
    upstream = set_up(output_dir or None, distributed_rank=comm.get_rank(), name="detectron2")
    for handler in upstream.handlers:
        handler.handleError = lambda record: None  # type: ignore[method-assign]
    for log in loggers:
        log.handlers = list(upstream.handlers)
        log.setLevel(logging.INFO)
        log.propagate = False
    try:
        yield
    finally:
        for log, handlers, level, propagate in before:
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)


def log_environment(args: argparse.Namespace) -> None:
    """Log rank, versions, and the command line."""
    logger.info(
        "Rank of current process: %d. World size: %d", comm.get_rank(), comm.get_world_size()
    )
    logger.info("Environment info:\n%s", collect_env_info())
    shown = {key: value for key, value in vars(args).items() if key != "watch"}
    logger.info("Command line arguments: %s", shown)


@contextlib.contextmanager
def saved_config(
    cfg: DictConfig, folder: str, *, evaluation_only: bool, is_resumed: bool, source: str = ""
) -> Iterator[Callable[[], None]]:
    """Write the run's config (rank 0), as ``config.yaml`` or ``config_evaluation.yaml``.

    If a resumed run's config has changed, or the config was read from the file to be written, the
    previous one is kept as ``config_1.yaml``, ``config_2.yaml``, ... It is put back if the ``with``
    block fails before it has called the function that it gets: the run was refused.

    Args:
        cfg: the whole config.
        folder: the run's folder; "" writes nothing.
        evaluation_only: the run is an evaluation.
        is_resumed: the run is resumed.
        source: the file that the config was read from.

    Yields:
        The function to call when the run begins.
    """
    path = os.path.join(folder, EVALUATED_CONFIG if evaluation_only else TRAINED_CONFIG)
    writes = folder and comm.is_main_process()
    kept = _save_config(cfg, path, is_resumed, source) if writes else ""
    begun = threading.Event()
    try:
        yield begun.set
    except BaseException:
        if kept and not begun.is_set():
            os.replace(kept, path)
            logger.info("%s is the previous config again", path)
        raise


def _save_config(cfg: DictConfig, path: str, is_resumed: bool, source: str) -> str:
    """Write a config; return where the previous one is kept, "" if there is none to keep."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    kept = ""
    if os.path.isfile(path) and (is_resumed or os.path.realpath(source) == os.path.realpath(path)):
        # First: a kill in between may leave one copy too many, but none too few.
        kept = _free_name(folder)
        shutil.copyfile(path, kept)
    LazyConfig.save(cfg, path)
    logger.info("Full config saved to %s", path)
    if kept and filecmp.cmp(path, kept, shallow=False):
        os.remove(kept)
        return ""
    if kept:
        logger.warning("The config has changed; the previous %s is kept as %s", path, kept)
    return kept


def _free_name(folder: str) -> str:
    number = 1
    while os.path.exists(path := os.path.join(folder, f"config_{number}.yaml")):
        number += 1
    return path


def seed_run(cfg: DictConfig, *, evaluation_only: bool) -> None:
    """Seed this rank's generators; ranks get different seeds, so that they draw different noise."""
    seed = int(cfg.train.seed)
    seed_all_rng(None if seed < 0 else seed + comm.get_rank())
    # cuDNN's search for the fastest kernel pays off only if shapes repeat, unlike in evaluation.
    if not evaluation_only:
        torch.backends.cudnn.benchmark = bool(
            OmegaConf.select(cfg, "train.cudnn_benchmark", default=False)
        )


def distributed(model: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """Wrap a model in DistributedDataParallel; return it unchanged if there is one process.

    Args:
        model: on its device. For one on the CPU no device is named, unlike in detectron2.
        options: arguments of ``DistributedDataParallel``, as in ``train.ddp``.
    """
    place = {} if next(model.parameters()).is_cuda else {"device_ids": None}
    return create_ddp_model(model, **{**place, **options})


def apply_fast_dev_run(cfg: DictConfig) -> None:
    """Shorten the run to 20 iterations with frequent logs and evaluations, as a trial.

    A trial writes to ``fast_dev_run`` below the output folder, which the next one replaces; it is
    never resumed.
    """
    if not cfg.train.fast_dev_run.enabled:
        return
    cfg.train.max_iter = 20
    cfg.train.eval_period = 10
    cfg.train.log_period = 1
    before = str(cfg.train.output_dir)
    cfg.train.output_dir = os.path.join(before, "fast_dev_run")
    follow_output_dir(cfg, before)
    if comm.is_main_process():
        shutil.rmtree(cfg.train.output_dir, ignore_errors=True)
    comm.synchronize()


def schedule_of(cfg: DictConfig) -> Any:
    """Build ``lr_multiplier``, for detectron2's hook ``LRScheduler``.

    Raises:
        ConfigError: it is not a schedule.
    """
    schedule = instantiate(cfg.lr_multiplier)
    if not isinstance(schedule, ParamScheduler):
        kind = "a fvcore ParamScheduler or a PyTorch LRScheduler"
        require_methods("lr_multiplier", schedule, kind, "step", "state_dict")
    return schedule


def hint_learning_rate(cfg: DictConfig) -> None:
    """Log how to scale the learning rate to the total batch size, and warn of a rate of 0."""
    batch = cfg.dataloader.train.get("total_batch_size", None)
    reference = cfg.train.reference_batch_size
    lr = cfg.optimizer.get("lr", None)
    if lr == 0:
        logger.warning("optimizer.lr=0: this training changes no weights")
    if not batch or not lr or batch == reference:
        return
    factor = batch / reference
    logger.info(
        "The total batch size is %d, but learning rate and schedule are for %d "
        "(train.reference_batch_size). Consider optimizer.lr=%.3g (linear scaling) or %.3g (square "
        "root scaling), and train.max_iter=%d for the same number of epochs; or set "
        "train.reference_batch_size=%d if they are for this batch size.",
        batch,
        reference,
        lr * factor,
        lr * factor**0.5,
        round(cfg.train.max_iter / factor),
        batch,
    )
