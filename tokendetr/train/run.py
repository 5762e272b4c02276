"""A training or evaluation run, from a config to its results."""

import argparse
import logging
from typing import Any

from detectron2.config import instantiate
from detectron2.engine import create_ddp_model, default_setup, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detrex.modeling import ema
from omegaconf import DictConfig
from torch import nn

from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.weights import load_weights
from tokendetr.config.load import load_config
from tokendetr.data.random_state import RngState
from tokendetr.data.stream import StreamLoader, build_train_loader
from tokendetr.data.validate import validate_config_data
from tokendetr.evaluation.run import Evaluation, check_device, default_best_metric
from tokendetr.train.hooks import (
    BestCheckpoint,
    Checkpoints,
    EpochCounter,
    EpochPrinter,
    RestoreRng,
    StopOnSignal,
)
from tokendetr.train.trainer import Trainer, parse_dtype

__all__ = ["run"]

logger = logging.getLogger("tokendetr.train")


def run(args: argparse.Namespace) -> Any:
    """What one process of ``tools/train_net.py`` does.

    Args:
        args: command line as of ``detectron2.engine.default_argument_parser``.

    Returns:
        The evaluation's results on rank 0.
    """
    cfg = load_config(args.config_file, args.opts, trained=args.eval_only)
    check_device(cfg.train.device)
    _apply_fast_dev_run(cfg)
    default_setup(cfg, args)
    _log_like_detectron2(cfg)
    validate_config_data(cfg, evaluation_only=args.eval_only)
    model = instantiate(cfg.model)
    model.to(cfg.train.device)
    if args.eval_only:
        return evaluate(cfg, model)
    return train(cfg, model, resume=args.resume)


def evaluate(cfg: DictConfig, model: nn.Module) -> Any:
    """Load ``train.init_checkpoint`` and evaluate it (``--eval-only``)."""
    ema.may_build_model_ema(cfg, model)
    checkpointer = AtomicCheckpointer(model)
    if cfg.train.init_checkpoint:
        load_weights(
            checkpointer, cfg.train.init_checkpoint, strict=cfg.train.init_checkpoint_strict
        )
    else:
        logger.warning("train.init_checkpoint is empty: evaluating a model without trained weights")
    if cfg.train.model_ema.enabled:
        _load_ema_state(cfg, model)
    return Evaluation(cfg, model)()


def _load_ema_state(cfg: DictConfig, model: nn.Module) -> None:
    """The moving average of the checkpoint, or the loaded weights where it has none."""
    state = ema.may_get_ema_checkpointer(cfg, model)["ema_state"]
    if cfg.train.init_checkpoint:
        saved = AtomicCheckpointer(model).read(cfg.train.init_checkpoint).get("ema_state")
        if saved:
            state.load_state_dict(saved)
            state.to(cfg.train.device)
            return
    logger.warning("The checkpoint has no ema_state: bbox_ema repeats the plain weights' metrics")
    state.save_from(model, cfg.train.device)


def train(cfg: DictConfig, model: nn.Module, *, resume: bool) -> Any:
    """Train ``model`` as ``cfg`` says, from where its output directory left off if ``resume``."""
    settings = cfg.train
    ema.may_build_model_ema(cfg, model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = build_train_loader(
        cfg.dataloader.train, seed=settings.seed, micro_batches=settings.grad_accum_steps
    )
    rng_state = RngState()
    parts: dict[str, Any] = {**ema.may_get_ema_checkpointer(cfg, model), "rng_state": rng_state}
    if isinstance(loader, StreamLoader):
        parts["data_state"] = loader
    wrapped = create_ddp_model(model, **settings.ddp)
    trainer = Trainer(
        wrapped,
        loader,
        optimizer,
        amp_dtype=parse_dtype(settings.amp.dtype) if settings.amp.enabled else None,
        clip_grad=settings.clip_grad.params if settings.clip_grad.enabled else None,
        grad_accum_steps=settings.grad_accum_steps,
        grad_accum_weighting=settings.grad_accum_weighting,
    )
    checkpointer = AtomicCheckpointer(wrapped, settings.output_dir, trainer=trainer, **parts)
    checkpointer.remove_leftovers()
    evaluation = Evaluation(cfg, model)
    is_resumed = resume and checkpointer.has_checkpoint()
    trainer.register_hooks(
        _hooks(cfg, model, trainer, checkpointer, evaluation, RestoreRng(rng_state, is_resumed))
    )
    start_iter = _load(cfg, checkpointer, trainer, resume)
    _hint_learning_rate(cfg)
    trainer.train(start_iter, settings.max_iter)
    return evaluation.latest


def _hooks(
    cfg: DictConfig,
    model: nn.Module,
    trainer: Trainer,
    checkpointer: AtomicCheckpointer,
    evaluation: Evaluation,
    restore_rng: RestoreRng,
) -> list[Any]:
    settings = cfg.train
    loader = trainer.data_loader
    per_epoch = loader.updates_per_epoch if isinstance(loader, StreamLoader) else None
    if settings.model_ema.enabled and not settings.model_ema.device:
        settings.model_ema.device = settings.device
    return [
        ema.EMAHook(cfg, model) if settings.model_ema.enabled else None,
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        EpochCounter(per_epoch) if per_epoch else None,
        Checkpoints(
            checkpointer,
            settings.checkpointer.period,
            max_to_keep=settings.checkpointer.max_to_keep,
        ),
        hooks.EvalHook(settings.eval_period, evaluation),
        BestCheckpoint(checkpointer, default_best_metric(cfg)),
        (
            hooks.PeriodicWriter(_writers(cfg, per_epoch), period=settings.log_period)
            if comm.is_main_process()
            else None
        ),
        StopOnSignal(checkpointer),
        restore_rng,
    ]


def _writers(cfg: DictConfig, per_epoch: float | None) -> list[EventWriter]:
    settings = cfg.train
    PathManager.mkdirs(settings.output_dir)
    writers: list[EventWriter] = [
        EpochPrinter(settings.max_iter, per_epoch),
        JSONWriter(f"{settings.output_dir}/metrics.json"),
        TensorboardXWriter(settings.output_dir),
    ]
    if settings.wandb.enabled:
        try:
            from detrex.utils import WandbWriter
        except ImportError as error:
            raise ImportError("train.wandb.enabled=True needs wandb: pip install wandb") from error
        PathManager.mkdirs(settings.wandb.params.dir)
        writers.append(WandbWriter(cfg))
    return writers


def _load(cfg: DictConfig, checkpointer: AtomicCheckpointer, trainer: Trainer, resume: bool) -> int:
    """Load the run's last checkpoint, or the initial weights; the iteration to start from."""
    path = checkpointer.get_checkpoint_file() if resume else ""
    if path:
        checkpointer.load(path)
        logger.info("Resuming from %s at iteration %d", path, trainer.iter + 1)
        return trainer.iter + 1
    if resume:
        logger.info("Nothing to resume in %s: starting anew", cfg.train.output_dir)
    if cfg.train.init_checkpoint:
        load_weights(
            checkpointer, cfg.train.init_checkpoint, strict=cfg.train.init_checkpoint_strict
        )
    return 0


def _apply_fast_dev_run(cfg: DictConfig) -> None:
    """20 iterations with frequent logs and evaluations, to see that everything fits."""
    if cfg.train.fast_dev_run.enabled:
        cfg.train.max_iter = 20
        cfg.train.eval_period = 10
        cfg.train.log_period = 1


def _log_like_detectron2(cfg: DictConfig) -> None:
    """Let this package's messages go where detectron2's go."""
    upstream = logging.getLogger("detectron2")
    ours = logging.getLogger("tokendetr")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    ours.handlers = list(upstream.handlers)


def _hint_learning_rate(cfg: DictConfig) -> None:
    """Say what a total batch size other than the schedule's would ask for."""
    batch = cfg.dataloader.train.get("total_batch_size", None)
    reference = cfg.train.reference_batch_size
    lr = cfg.optimizer.get("lr", None)
    if not batch or not lr or batch == reference:
        return
    factor = batch / reference
    logger.info(
        "The total batch size is %d; learning rate and schedule of a config are usually meant for "
        "%d. Consider optimizer.lr=%.3g (in proportion) or %.3g (by the square root), and "
        "train.max_iter=%d for as many epochs; or set train.reference_batch_size=%d if they are "
        "meant for this size.",
        batch,
        reference,
        lr * factor,
        lr * factor**0.5,
        round(cfg.train.max_iter / factor),
        batch,
    )
