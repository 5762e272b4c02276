"""Run a training or an evaluation, from config to results."""

import argparse
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

from detectron2.config import instantiate
from detectron2.engine import hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.file_io import PathManager
from detrex.modeling import ema
from omegaconf import DictConfig
from torch import nn

from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.weights import load_weights
from tokendetr.config.data_folder import record_data_files
from tokendetr.config.load import load_config, result_writers
from tokendetr.config.model import model_of
from tokendetr.config.parts import built_from
from tokendetr.data.config_hints import config_hints
from tokendetr.data.random_state import RngState
from tokendetr.data.stream import StreamLoader, build_train_loader
from tokendetr.data.validate import validate_config_data
from tokendetr.data.workers import named_loader_failures
from tokendetr.evaluation.run import Evaluation, default_best_metric
from tokendetr.layers.precision import Precision, parse_dtype
from tokendetr.train.classes import loaded_classes, warn_of_other_classes
from tokendetr.train.hooks import (
    BestCheckpoint,
    Checkpoints,
    EpochCounter,
    Evaluations,
    RestoreRng,
)
from tokendetr.train.optimizer_state import try_update
from tokendetr.train.results_table import ResultsTable
from tokendetr.train.run_folder import RunFolder
from tokendetr.train.setup import (
    apply_fast_dev_run,
    check_run,
    distributed,
    hint_learning_rate,
    log_environment,
    run_logging,
    saved_config,
    schedule_of,
    seed_run,
)
from tokendetr.train.starting_state import load_average, load_starting_state
from tokendetr.train.stop import StopSignals
from tokendetr.train.trainer import Trainer
from tokendetr.train.writers import EpochPrinter, MetricsFile, Writers, tensorboard_writer

__all__ = ["fit", "run"]

logger = logging.getLogger("tokendetr.train")


def run(args: argparse.Namespace) -> Any:
    """Run one process of ``tools/train_net.py``.

    Args:
        args: command line, as of ``detectron2.engine.default_argument_parser``, and ``watch`` if
            the run has several processes.

    Returns:
        The evaluation's results on rank 0.

    Raises:
        TrainingInterrupted: SIGTERM or SIGINT was received.
    """
    with StopSignals() as stop:
        watch = getattr(args, "watch", None)
        if watch is not None:
            watch.follow(stop)
        with stop.interruptible():
            return _run(args, stop)


def fit(cfg: DictConfig, *, resume: bool = False) -> Any:
    """Train a config in this process, as ``tokendetr train`` does.

    Args:
        cfg: config from :func:`tokendetr.load_config`.
        resume: continue the run in ``train.output_dir``, if there is one.

    Returns:
        The last evaluation's results: task -> metric -> number, in percent.

    Raises:
        DatasetError, ConfigError, RunFolderError: data, config or folder cannot be used; raised
            before the first step.
        NonFiniteLossError: a loss or gradient is not finite.
        TrainingInterrupted: SIGTERM or SIGINT was received; a checkpoint was saved.
    """
    args = argparse.Namespace(eval_only=False, resume=resume)
    with StopSignals() as stop, stop.interruptible():
        return _run_config(cfg, args, stop)


def _run(args: argparse.Namespace, stop: StopSignals) -> Any:
    cfg = load_config(args.config_file, args.opts, trained=args.eval_only)
    return _run_config(cfg, args, stop)


def _run_config(cfg: DictConfig, args: argparse.Namespace, stop: StopSignals) -> Any:
    check_run(cfg, evaluation_only=args.eval_only, is_resumed=args.resume)
    apply_fast_dev_run(cfg)
    folder = str(cfg.train.output_dir or "")
    with contextlib.ExitStack() as stack:
        claimed: RunFolder | None = None
        if args.eval_only:
            _keep_results_of_training(cfg)
        else:
            claimed = stack.enter_context(RunFolder(folder, resume=args.resume))
        stack.enter_context(run_logging(folder))
        log_environment(args)
        record_data_files(cfg)
        begin = stack.enter_context(
            saved_config(
                cfg,
                folder,
                evaluation_only=args.eval_only,
                is_resumed=args.resume,
                source=getattr(args, "config_file", ""),
            )
        )
        seed_run(cfg, evaluation_only=args.eval_only)
        validate_config_data(cfg, evaluation_only=args.eval_only)
        if not args.eval_only and comm.is_main_process():
            with contextlib.suppress(Exception):  # a hint never costs a run
                for hint in config_hints(cfg):
                    logger.info("%s", hint)
        model = model_of(cfg)
        if args.eval_only:
            precision: Precision = getattr(args, "precision", "float32")
            return evaluate(cfg, model, precision=precision, images=getattr(args, "images", None))
        return train(cfg, model, resume=args.resume, folder=claimed, stop=stop, begin=begin)


def _keep_results_of_training(cfg: DictConfig) -> None:
    """Redirect the results of ``--eval-only`` in a training's folder to ``evaluation`` below it."""
    for node in result_writers(cfg):
        if os.path.exists(os.path.join(str(node.output_dir), "run.json")):
            node.output_dir = os.path.join(str(node.output_dir), "evaluation")


def evaluate(
    cfg: DictConfig,
    model: nn.Module,
    *,
    precision: Precision = "float32",
    images: int | None = None,
) -> Any:
    """Load ``train.init_checkpoint`` and evaluate it (``--eval-only``).

    Args:
        cfg: the whole config.
        model: the config's model, on its device.
        precision: arithmetic of the forward pass.
        images: number of test images, the first ones; None for all.

    Returns:
        The evaluation's results on rank 0.

    Raises:
        LoaderError: a loader process was lost.
    """
    ema.may_build_model_ema(cfg, model)
    checkpointer = AtomicCheckpointer(model)
    if cfg.train.init_checkpoint:
        load_weights(
            checkpointer, cfg.train.init_checkpoint, strict=cfg.train.init_checkpoint_strict
        )
    else:
        logger.warning("train.init_checkpoint is empty: evaluating a model without trained weights")
    if cfg.train.model_ema.enabled:
        load_average(cfg, model)
    evaluation = Evaluation(cfg, model, precision=precision, images=images)
    evaluation.prepare()
    classes = loaded_classes(cfg, tested=True)
    warn_of_other_classes(cfg.train.init_checkpoint, checkpointer.file_classes, classes)
    with named_loader_failures():
        return evaluation()


def train(
    cfg: DictConfig,
    model: nn.Module,
    *,
    resume: bool,
    folder: RunFolder | None = None,
    stop: StopSignals | None = None,
    begin: Callable[[], None] = lambda: None,
) -> Any:
    """Train a model.

    Args:
        cfg: the whole config.
        model: the config's model, on its device.
        resume: continue the run in ``train.output_dir``, if there is one.
        folder: ``train.output_dir``, if the caller has claimed it already.
        stop: the stop signals, if the caller handles them already.
        begin: called before the first step, when the state to start from is loaded.

    Returns:
        The last evaluation's results on rank 0.

    Raises:
        LoaderError: a loader process was lost.
        RunFolderError: the folder belongs to another run.
        TrainingInterrupted: SIGTERM or SIGINT was received; a checkpoint was saved.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(named_loader_failures())
        if folder is None:
            folder = stack.enter_context(RunFolder(str(cfg.train.output_dir), resume=resume))
        if stop is None:
            stop = stack.enter_context(StopSignals())
        return _train(cfg, model, resume, folder, stop, begin)


def _train(
    cfg: DictConfig,
    model: nn.Module,
    resume: bool,
    folder: RunFolder,
    stop: StopSignals,
    begin: Callable[[], None],
) -> Any:
    settings = cfg.train
    ema.may_build_model_ema(cfg, model)
    cfg.optimizer.params.model = model
    with built_from("optimizer"):
        optimizer = instantiate(cfg.optimizer)
        try_update(optimizer)
    with built_from("dataloader.train"):
        loader = build_train_loader(
            cfg.dataloader.train, seed=settings.seed, micro_batches=settings.grad_accum_steps
        )
    rng_state = RngState()
    parts: dict[str, Any] = {**ema.may_get_ema_checkpointer(cfg, model), "rng_state": rng_state}
    if isinstance(loader, StreamLoader):
        parts["data_state"] = loader
    with built_from("train"):
        wrapped = distributed(model, settings.ddp)
        trainer = Trainer(
            wrapped,
            loader,
            optimizer,
            amp_dtype=parse_dtype(settings.amp.dtype) if settings.amp.enabled else None,
            clip_grad=settings.clip_grad.params if settings.clip_grad.enabled else None,
            grad_accum_steps=settings.grad_accum_steps,
            grad_accum_weighting=settings.grad_accum_weighting,
            stop=stop,
        )
    checkpointer = AtomicCheckpointer(wrapped, settings.output_dir, trainer=trainer, **parts)
    checkpointer.identity = folder.identity
    checkpointer.classes = loaded_classes(cfg, tested=False)
    checkpointer.remove_leftovers()
    evaluation = Evaluation(cfg, model)
    evaluation.prepare()
    is_resumed = resume and checkpointer.has_checkpoint()
    with built_from("train or lr_multiplier"):
        trainer.register_hooks(_hooks(cfg, model, trainer, checkpointer, evaluation, folder))
    # Registered last, because other hooks may draw random numbers when they start.
    trainer.register_hooks([RestoreRng(rng_state, is_resumed)])
    start_iter = load_starting_state(cfg, checkpointer, trainer, folder, resume)
    begin()
    hint_learning_rate(cfg)
    with stop.uninterrupted():
        trainer.train(start_iter, settings.max_iter)
    return evaluation.latest


def _hooks(
    cfg: DictConfig,
    model: nn.Module,
    trainer: Trainer,
    checkpointer: AtomicCheckpointer,
    evaluation: Evaluation,
    folder: RunFolder,
) -> list[Any]:
    settings = cfg.train
    loader = trainer.data_loader
    per_epoch = loader.updates_per_epoch if isinstance(loader, StreamLoader) else None
    if settings.model_ema.enabled and not settings.model_ema.device:
        settings.model_ema.device = settings.device
    checkpoints = Checkpoints(
        checkpointer,
        settings.checkpointer.period,
        eval_period=settings.eval_period,
        max_to_keep=settings.checkpointer.max_to_keep,
    )
    trainer.save_on_stop = checkpoints.save
    writers: Writers | None = None
    if comm.is_main_process():
        writers = Writers(
            lambda start: _writers(cfg, per_epoch, start, folder.evaluated),
            settings.log_period,
            _metrics_path(cfg),
            folder.mark_evaluated,
        )
    evaluations = Evaluations(settings.eval_period, evaluation, writers, folder, trainer.stop)
    return [
        ema.EMAHook(cfg, model) if settings.model_ema.enabled else None,
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=schedule_of(cfg)),
        EpochCounter(per_epoch) if per_epoch else None,
        checkpoints,
        evaluations,
        BestCheckpoint(
            checkpointer,
            evaluations,
            default_best_metric(cfg),
            is_chosen=bool(settings.best_metric),
        ),
        writers,
        ResultsTable(_metrics_path(cfg), settings.eval_period) if writers else None,
    ]


def _metrics_path(cfg: DictConfig) -> str:
    return os.path.join(str(cfg.train.output_dir), "metrics.json")


def _writers(
    cfg: DictConfig, per_epoch: float | None, start_iter: int, evaluated: int
) -> list[EventWriter]:
    settings = cfg.train
    PathManager.mkdirs(settings.output_dir)
    # The final evaluation has its own line after the last iteration's.
    is_finished = start_iter >= settings.max_iter and evaluated >= settings.max_iter
    writers: list[EventWriter] = [
        EpochPrinter(settings.max_iter, per_epoch),
        MetricsFile(_metrics_path(cfg), start_iter + is_finished),
        tensorboard_writer(settings.output_dir, start_iter),
    ]
    if settings.wandb.enabled:
        from detrex.utils import WandbWriter  # check_settings has found wandb

        PathManager.mkdirs(settings.wandb.params.dir)
        writers.append(WandbWriter(cfg))
    return writers
