"""Load the state that a run starts from: its own checkpoint, initial weights, their average."""

import logging
from typing import Any

from detectron2.utils import comm
from detrex.modeling import ema
from omegaconf import DictConfig
from torch import nn

from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.finite import refuse_unusable_weights
from tokendetr.checkpoint.weights import compare_weights, load_weights
from tokendetr.data.stream import StreamLoader
from tokendetr.errors import CheckpointMismatchError, ConfigError, RunFolderError
from tokendetr.train.classes import refuse_moved_classes
from tokendetr.train.run_folder import RunFolder
from tokendetr.train.trainer import Trainer

__all__ = ["load_average", "load_starting_state"]

logger = logging.getLogger("tokendetr.train")

# What the parts of a training raise when they load a state that does not fit them.
_UNFIT = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError)


def load_starting_state(
    cfg: DictConfig,
    checkpointer: AtomicCheckpointer,
    trainer: Trainer,
    folder: RunFolder,
    resume: bool,
) -> int:
    """Load the run's last checkpoint or the initial weights; return the iteration to start from.

    Args:
        cfg: the whole config.
        checkpointer: of the model, the trainer and the run's other state.
        trainer: the trainer, whose hooks are registered.
        folder: the run's folder.
        resume: continue from the last checkpoint, if there is one.

    Raises:
        ConfigError: the last checkpoint has more iterations than the run.
        CheckpointError: none of the run's checkpoints can be read.
        CheckpointMismatchError: the checkpoint or the initial weights belong to another model.
        RunFolderError: the checkpoint belongs to another run.
    """
    path = _latest(checkpointer, folder) if resume else ""
    if path:
        try:
            checkpointer.load(path)
        except _UNFIT as error:  # such as an optimizer with other parameters
            reason = str(error) if isinstance(error, ValueError) else repr(error)
            raise _other_model(path, reason) from error
        checkpointer.resumed_from = path
        _say_whose_order(trainer.data_loader, int(cfg.train.seed))
        start = trainer.iter + 1
        if start > cfg.train.max_iter:  # what follows would be recorded under the wrong iteration
            raise ConfigError(
                f"{path} has {start} iterations, more than train.max_iter={cfg.train.max_iter}: "
                "raise it to resume, or take a checkpoint as train.init_checkpoint of another run"
            )
        logger.info("Resuming from %s at iteration %d", path, start)
        return start
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


def load_average(cfg: DictConfig, model: nn.Module) -> None:
    """Load the moving average of ``train.init_checkpoint`` for an evaluation.

    Where there is none, the model's weights are copied, with a warning.

    Args:
        cfg: the whole config.
        model: a model with a moving average, with its weights loaded.

    Raises:
        CheckpointError: values of the average are NaN or infinite.
    """
    state = ema.may_get_ema_checkpointer(cfg, model)["ema_state"]
    if cfg.train.init_checkpoint:
        saved = AtomicCheckpointer(model).read(cfg.train.init_checkpoint).get("ema_state")
        if saved:
            refuse_unusable_weights(f"ema_state of {cfg.train.init_checkpoint}", saved, model)
            state.load_state_dict(saved)
            state.to(cfg.train.device)
            return
    logger.warning("The checkpoint has no ema_state: bbox_ema repeats the plain weights' metrics")
    state.save_from(model, cfg.train.device)


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
        CheckpointMismatchError: the checkpoint belongs to another model, or numbers the classes of
            the data otherwise.
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
        refuse_moved_classes(path, data.get("classes"), checkpointer.classes)
        checkpointer.identity = folder.identity
    return str(comm.all_gather(path)[0])


def _other_model(path: str, reason: str) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"{path} belongs to another model or optimizer than the config's, so its run cannot be "
        f"continued:\n{reason}\nRemove the overrides that change the model; or start a new run "
        f"from its weights in another train.output_dir with train.init_checkpoint={path} "
        "train.init_checkpoint_strict=False"
    )
