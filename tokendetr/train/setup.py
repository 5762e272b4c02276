"""Set up a run: logging, the saved config, seeds, DistributedDataParallel."""

import argparse
import contextlib
import filecmp
import logging
import os
import shutil
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from detectron2.config import LazyConfig
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from tokendetr.errors import EXPECTED_ERRORS, ConfigError

__all__ = ["built_from", "distributed", "run_logging", "save_config", "seed_run"]

logger = logging.getLogger("tokendetr.train")

_LOGGERS = ("detectron2", "detrex", "fvcore", "tokendetr")


@contextlib.contextmanager
def built_from(key: str) -> Iterator[None]:
    """Turn errors of the ``with`` block, which builds a part of the config, into config errors.

    Args:
        key: the part, for messages.

    Raises:
        ConfigError: a constructor refused a value; the message names the part.
    """
    try:
        yield
    except EXPECTED_ERRORS:
        raise
    except (ValueError, TypeError, AssertionError, OmegaConfBaseException) as error:
        if not str(error):  # an assertion without a message is useless without its traceback
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key} cannot be built from the config: {reason}") from error
    except (AttributeError, LookupError, RuntimeError) as error:  # of little use without a place
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{(str(error) or repr(error)).splitlines()[0]} ({frame.filename}:{frame.lineno})"
        raise ConfigError(f"{key} cannot be built from the config: {reason}") from error


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


def save_config(
    cfg: DictConfig, folder: str, *, evaluation_only: bool, is_resumed: bool, source: str = ""
) -> None:
    """Write the run's config (rank 0), as ``config.yaml`` or ``config_evaluation.yaml``.

    If a resumed run's config has changed, or the config was read from the file to be written, the
    previous one is kept as ``config_1.yaml``, ``config_2.yaml``, ...

    Args:
        cfg: the whole config.
        folder: the run's folder; "" writes nothing.
        evaluation_only: the run is an evaluation.
        is_resumed: the run is resumed.
        source: the file that the config was read from.
    """
    if not folder or not comm.is_main_process():
        return
    os.makedirs(folder, exist_ok=True)
    name = "config_evaluation.yaml" if evaluation_only else "config.yaml"
    path = os.path.join(folder, name)
    kept = ""
    if os.path.isfile(path) and (is_resumed or os.path.realpath(source) == os.path.realpath(path)):
        # First: a kill in between may leave one copy too many, but none too few.
        kept = _free_name(folder)
        shutil.copyfile(path, kept)
    LazyConfig.save(cfg, path)
    logger.info("Full config saved to %s", path)
    if kept and filecmp.cmp(path, kept, shallow=False):
        os.remove(kept)
    elif kept:
        logger.warning("The config has changed; the previous %s is kept as %s", path, kept)


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
