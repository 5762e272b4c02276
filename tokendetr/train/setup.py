"""What a run does first: logs of its own, the config on disk, seeds."""

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
    """A block that builds what a part of the config describes.

    Raises:
        ConfigError: something refused a value; the message names the part.
    """
    try:
        yield
    except EXPECTED_ERRORS:
        raise
    except (ValueError, TypeError, AssertionError, OmegaConfBaseException) as error:
        if not str(error):  # an assertion without words says nothing outside its traceback
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key} cannot be built as the config has it: {reason}") from error
    except (AttributeError, LookupError, RuntimeError) as error:  # whose words need their place
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{(str(error) or repr(error)).splitlines()[0]} ({frame.filename}:{frame.lineno})"
        raise ConfigError(f"{key} cannot be built as the config has it: {reason}") from error


@contextlib.contextmanager
def run_logging(output_dir: str) -> Iterator[None]:
    """Send messages to the terminal (rank 0) and to ``log.txt`` of this run, for a ``with`` block.

    The loggers' handlers from before come back afterwards, so that runs of one process (a notebook)
    neither write into each other's logs nor show their lines twice. A log that cannot be written,
    on a full disk, loses lines and nothing else.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(log, list(log.handlers), log.level, log.propagate) for log in loggers]
    for log in loggers:
        log.handlers = []
    # The function behind upstream's cache, which would give a folder its handlers only once.
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
    """Log ranks, versions, and the command line."""
    logger.info(
        "Rank of current process: %d. World size: %d", comm.get_rank(), comm.get_world_size()
    )
    logger.info("Environment info:\n%s", collect_env_info())
    shown = {key: value for key, value in vars(args).items() if key != "watch"}
    logger.info("Command line arguments: %s", shown)


def save_config(
    cfg: DictConfig, folder: str, *, evaluation_only: bool, is_resumed: bool, source: str = ""
) -> None:
    """Write the config that runs (rank 0).

    A training's is ``config.yaml``, an evaluation's ``config_evaluation.yaml``. Where a resumed run
    has another one than before, or the run's own config file is of that name, the one from before
    stays as ``config_1.yaml``, ``config_2.yaml``, ...

    Args:
        cfg: the whole config.
        folder: "" writes nothing.
        evaluation_only, is_resumed: what runs.
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
        logger.warning("The config is not that of %s so far, which is kept as %s", path, kept)


def _free_name(folder: str) -> str:
    number = 1
    while os.path.exists(path := os.path.join(folder, f"config_{number}.yaml")):
        number += 1
    return path


def seed_run(cfg: DictConfig, *, evaluation_only: bool) -> None:
    """Seed the generators of this rank; ranks differ, so that their augmentations do."""
    seed = int(cfg.train.seed)
    seed_all_rng(None if seed < 0 else seed + comm.get_rank())
    # Timing kernels pays off only when shapes repeat, which they do not in evaluation.
    if not evaluation_only:
        torch.backends.cudnn.benchmark = bool(
            OmegaConf.select(cfg, "train.cudnn_benchmark", default=False)
        )


def distributed(model: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """Return a model for training in many processes; the same model in one.

    Args:
        model: on its device, which may be the CPU: detectron2 alone would name a GPU for it.
        options: of ``DistributedDataParallel``, as in ``train.ddp``.
    """
    place = {} if next(model.parameters()).is_cuda else {"device_ids": None}
    return create_ddp_model(model, **{**place, **options})
