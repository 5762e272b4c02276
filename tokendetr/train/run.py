"""Run a training or an evaluation, from config to results."""
# Over 350 lines: the steps of one run, in order.

import argparse
import contextlib
import logging
import os
import shutil
from typing import Any

from detectron2.config import instantiate
from detectron2.engine import hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.file_io import PathManager
from detrex.modeling import ema
from omegaconf import DictConfig, OmegaConf
from torch import nn

from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.weights import compare_weights, load_weights
from tokendetr.config.load import follow_output_dir, load_config, result_writers
from tokendetr.config.own_data import record_data_files
from tokendetr.data.hints import data_hints
from tokendetr.data.random_state import RngState
from tokendetr.data.stream import StreamLoader, build_train_loader
from tokendetr.data.validate import validate_config_data
from tokendetr.data.workers import named_loader_failures
from tokendetr.errors import CheckpointMismatchError, ConfigError, RunFolderError
from tokendetr.evaluation.run import Evaluation, check_device, default_best_metric
from tokendetr.layers.precision import Precision
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
    built_from,
    distributed,
    log_environment,
    run_logging,
    save_config,
    seed_run,
)
from tokendetr.train.stop import StopSignals
from tokendetr.train.trainer import Trainer, parse_dtype
from tokendetr.train.writers import EpochPrinter, MetricsFile, Writers, tensorboard_writer

__all__ = ["fit", "run"]

logger = logging.getLogger("tokendetr.train")

# What the parts of a training raise when they load a state that does not fit them.
_UNFIT = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError)


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
    wanted = ["model", "dataloader"]
    wanted += [] if args.eval_only else ["dataloader.train", "optimizer", "lr_multiplier"]
    if missing := [key for key in wanted if OmegaConf.select(cfg, key, default=None) is None]:
        raise ConfigError(f"the config has no {', '.join(missing)}")
    check_device(cfg.train.device)
    if cfg.train.model_ema.get("device", ""):
        check_device(cfg.train.model_ema.device, "train.model_ema.device")
    _apply_fast_dev_run(cfg)
    folder = str(cfg.train.output_dir or "")
    if not folder and not args.eval_only:
        raise ConfigError("train.output_dir is empty: give a folder for the run")
    with contextlib.ExitStack() as stack:
        claimed: RunFolder | None = None
        if args.eval_only:
            _keep_results_of_training(cfg)
        else:
            claimed = stack.enter_context(RunFolder(folder, resume=args.resume))
        stack.enter_context(run_logging(folder))
        log_environment(args)
        record_data_files(cfg)
        save_config(
            cfg,
            folder,
            evaluation_only=args.eval_only,
            is_resumed=args.resume,
            source=getattr(args, "config_file", ""),
        )
        seed_run(cfg, evaluation_only=args.eval_only)
        validate_config_data(cfg, evaluation_only=args.eval_only)
        if not args.eval_only and comm.is_main_process():
            with contextlib.suppress(Exception):  # a hint never costs a run
                for hint in data_hints(cfg):
                    logger.info("%s", hint)
        with built_from("model"):
            model = instantiate(cfg.model)
        model.to(cfg.train.device)
        if args.eval_only:
            return evaluate(cfg, model, precision=getattr(args, "precision", "float32"))
        return train(cfg, model, resume=args.resume, folder=claimed, stop=stop)


def _keep_results_of_training(cfg: DictConfig) -> None:
    """Redirect the results of ``--eval-only`` in a training's folder to ``evaluation`` below it."""
    for node in result_writers(cfg):
        if os.path.exists(os.path.join(str(node.output_dir), "run.json")):
            node.output_dir = os.path.join(str(node.output_dir), "evaluation")


def evaluate(cfg: DictConfig, model: nn.Module, *, precision: Precision = "float32") -> Any:
    """Load ``train.init_checkpoint`` and evaluate it (``--eval-only``).

    Args:
        cfg: the whole config.
        model: the config's model, on its device.
        precision: arithmetic of the forward pass.

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
        _load_ema_state(cfg, model)
    evaluation = Evaluation(cfg, model, precision=precision)
    with built_from("dataloader"):
        evaluation.prepare()
    with named_loader_failures():
        return evaluation()


def _load_ema_state(cfg: DictConfig, model: nn.Module) -> None:
    """Load the checkpoint's moving average, or copy the loaded weights if it has none."""
    state = ema.may_get_ema_checkpointer(cfg, model)["ema_state"]
    if cfg.train.init_checkpoint:
        saved = AtomicCheckpointer(model).read(cfg.train.init_checkpoint).get("ema_state")
        if saved:
            state.load_state_dict(saved)
            state.to(cfg.train.device)
            return
    logger.warning("The checkpoint has no ema_state: bbox_ema repeats the plain weights' metrics")
    state.save_from(model, cfg.train.device)


def train(
    cfg: DictConfig,
    model: nn.Module,
    *,
    resume: bool,
    folder: RunFolder | None = None,
    stop: StopSignals | None = None,
) -> Any:
    """Train a model.

    Args:
        cfg: the whole config.
        model: the config's model, on its device.
        resume: continue the run in ``train.output_dir``, if there is one.
        folder: ``train.output_dir``, if the caller has claimed it already.
        stop: the stop signals, if the caller handles them already.

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
        return _train(cfg, model, resume, folder, stop)


def _train(
    cfg: DictConfig, model: nn.Module, resume: bool, folder: RunFolder, stop: StopSignals
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
    checkpointer.remove_leftovers()
    evaluation = Evaluation(cfg, model)
    with built_from("dataloader"):
        evaluation.prepare()
    is_resumed = resume and checkpointer.has_checkpoint()
    with built_from("train or lr_multiplier"):
        trainer.register_hooks(_hooks(cfg, model, trainer, checkpointer, evaluation, folder))
    # Registered last, because other hooks may draw random numbers when they start.
    trainer.register_hooks([RestoreRng(rng_state, is_resumed)])
    start_iter = _load(cfg, checkpointer, trainer, folder, resume)
    _hint_learning_rate(cfg)
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
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
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


def _load(
    cfg: DictConfig,
    checkpointer: AtomicCheckpointer,
    trainer: Trainer,
    folder: RunFolder,
    resume: bool,
) -> int:
    """Load the run's last checkpoint or the initial weights; return the iteration to start from."""
    path = _latest(checkpointer, folder) if resume else ""
    if path:
        try:
            checkpointer.load(path)
        except _UNFIT as error:  # such as an optimizer with other parameters
            reason = str(error) if isinstance(error, ValueError) else repr(error)
            raise _other_model(path, reason) from error
        checkpointer.resumed_from = path
        _say_whose_order(trainer.data_loader, int(cfg.train.seed))
        logger.info("Resuming from %s at iteration %d", path, trainer.iter + 1)
        return trainer.iter + 1
    if resume:
        logger.info("Nothing to resume in %s: starting from scratch", cfg.train.output_dir)
    if cfg.train.init_checkpoint:
        load_weights(
            checkpointer,
            cfg.train.init_checkpoint,
            strict=cfg.train.init_checkpoint_strict,
            new_classes=True,
        )
    return 0


def _say_whose_order(loader: Any, seed: int) -> None:
    """Warn if the config's seed differs from that of the resumed run's data."""
    if isinstance(loader, StreamLoader) and seed >= 0 and seed != loader.seed:
        logger.warning(
            "train.seed=%d is ignored: the run continues with the data order and random states of "
            "its seed %d. Start a new run for another seed",
            seed,
            loader.seed,
        )


def _latest(checkpointer: AtomicCheckpointer, folder: RunFolder) -> str:
    """Return the checkpoint to resume from, "" if there is none.

    Rank 0 chooses it for all ranks: on a network file system they may see different files.

    Raises:
        RunFolderError: the checkpoint belongs to another run.
        CheckpointMismatchError: the checkpoint belongs to another model.
    """
    path = ""
    if comm.is_main_process() and checkpointer.has_checkpoint():
        path, data = checkpointer.read_latest()
        if not folder.owns(data.get("run")):
            raise RunFolderError(
                f"{path} belongs to another run than the folder {folder.path}. Move that run's "
                "checkpoints away to start this run over, continue that run in its own folder, or "
                "start from its weights with train.init_checkpoint=..."
            )
        model: Any = checkpointer.model
        report = compare_weights(getattr(model, "module", model), data["model"])
        if not report.is_complete:
            raise _other_model(path, report.table())
        checkpointer.identity = folder.identity
    return str(comm.all_gather(path)[0])


def _other_model(path: str, reason: str) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"{path} belongs to another model or optimizer than the config's, so its run cannot be "
        f"continued:\n{reason}\nRemove the overrides that change the model; or start a new run "
        f"from its weights in another train.output_dir with train.init_checkpoint={path} "
        "train.init_checkpoint_strict=False"
    )


def _apply_fast_dev_run(cfg: DictConfig) -> None:
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


def _hint_learning_rate(cfg: DictConfig) -> None:
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
