"""Load weights into models and report which tensors match."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import Tensor, nn

from tokendetr.checkpoint.averaged import Choice, chosen_weights
from tokendetr.checkpoint.backbone_weights import as_backbone
from tokendetr.checkpoint.finite import refuse_unusable_weights
from tokendetr.checkpoint.key_names import grouped_keys, shortened
from tokendetr.checkpoint.load_report import LoadReport, compared
from tokendetr.checkpoint.reading import how_it_is_made, read_checkpoint
from tokendetr.checkpoint.safetensors import alias_groups, load_safetensors, save_safetensors
from tokendetr.errors import CheckpointError, CheckpointMismatchError

__all__ = [
    "LoadReport",
    "compare_weights",
    "fit_report",
    "load_matching_weights",
    "load_safetensors",
    "load_weights",
    "read_checkpoint",
    "require_checkpoint",
    "save_safetensors",
]

logger = logging.getLogger(__name__)


class _Reporting:
    """Select and convert the weights that a checkpointer loads, and record which keys match."""

    def __init__(self, path: str, choice: Choice) -> None:
        self.path = path
        self.choice = choice
        self.incompatible: Any = None
        self.file_shapes: dict[str, tuple[int, ...]] = {}
        self.repeated: set[str] = set()
        self.is_partial = False

    def watch(self, checkpointer: Checkpointer) -> None:
        """Intercept the checkpointer's next ``load``, between reading the file and the model."""
        load_model = checkpointer._load_model

        def watched(checkpoint: Any) -> Any:
            # The reader sets this for the model zoo's backbones, the user by the URL's query.
            self.is_partial = bool(checkpoint.get("matching_heuristics", False))
            try:
                chosen, which = chosen_weights(checkpoint, self.choice)
            except CheckpointError as error:
                raise type(error)(f"{self.path}: {error}") from error
            if which == "ema":
                logger.warning("%s: using the moving average of the weights", self.path)
            weights = checkpoint["model"] = _converted(chosen, checkpointer.model)
            self._complete(checkpoint, weights, checkpointer.model.state_dict())
            refuse_unusable_weights(self.path, checkpoint["model"], checkpointer.model)
            self.incompatible = load_model(checkpoint)
            return None

        checkpointer._load_model = watched

    def _complete(
        self, checkpoint: Any, weights: dict[str, Any], model_state: Mapping[str, Tensor]
    ) -> None:
        """Add the names of shared tensors; recognize a bare backbone by its names."""
        backbone = None if self.is_partial else as_backbone(_unwrapped(weights), model_state)
        if backbone is not None:
            logger.info("The file has the weights of a bare backbone; loading them as 'backbone.*'")
            self.is_partial = True
        # Also with matching heuristics, which refuse a name that fits two of the model's.
        completed = checkpoint["model"] = backbone or _with_aliases(weights, model_state)
        self.file_shapes, self.repeated = _shapes(completed), _repeated(completed)

    def report(self, model: nn.Module) -> LoadReport:
        """Return how the tensors of the loaded file match the model's."""
        absent = {*self.incompatible.missing_keys}
        absent.update(name for name, _, _ in self.incompatible.incorrect_shapes)
        return compared(
            model.state_dict(),
            self.file_shapes,
            absent=absent,
            unexpected=sorted(self.incompatible.unexpected_keys),
            repeated=self.repeated,
        )


def require_checkpoint(path: str) -> None:
    """Refuse the path of a checkpoint that is not there, before any work; URLs are not looked up.

    Raises:
        FileNotFoundError: no such file; for weights of this project the message says how they are
            made.
        CheckpointError: the file's name would be read as a URL's.
    """
    if set(path) & set("?\t\r\n") and os.path.isfile(path):
        raise CheckpointError(
            f"checkpoint {path!r}: a path with '?', tabs or line breaks is read as a URL: rename it"
        )
    file = path.partition("?")[0]
    if "://" not in file and not os.path.isfile(file):
        what = "is a folder: name a file" if os.path.isdir(file) else "not found"
        raise FileNotFoundError(f"checkpoint {file} {what}{how_it_is_made(file)}")


def load_weights(
    checkpointer: Checkpointer,
    path: str,
    *,
    strict: bool = True,
    choice: Choice = "model",
    new_classes: bool = False,
) -> LoadReport:
    """Load the weights of a checkpoint into ``checkpointer.model`` and report which keys match.

    Before keys are compared, a prefix that all of them share is removed, every module of the model
    with a method ``convert_weights`` renames them, and shared tensors get all of their names.

    Args:
        checkpointer: reads the file (path, URL, ``detectron2://``, ``?matching_heuristics=True``).
        path: the checkpoint.
        strict: every key must match. Files of a part of a model (a bare backbone under its own or
            torchvision's names, or anything with matching heuristics) need one matching key only.
        choice: the model's weights or their moving average, if the training kept one
            (:func:`tokendetr.checkpoint.averaged.chosen_weights`).
        new_classes: for a training: keep the initial weights of class heads with another number of
            classes, with a warning, instead of refusing the file; all other keys must match.

    Returns:
        The tensors by how they match.

    Raises:
        FileNotFoundError: no such file; for weights of this project the message says how they are
            made.
        CheckpointMismatchError: keys do not match; the message has a table of them, and says how to
            load the file anyway.
        CheckpointError: the average is requested, and the file has none; or weights that the model
            would load are NaN or infinite (:mod:`tokendetr.checkpoint.finite`).
    """
    report, is_partial = load_matching_weights(checkpointer, path, choice=choice)
    if new_classes and (heads := report.take_class_heads()):
        logger.warning(
            "%s has another number of classes: %s keep their initial weights",
            path,
            shortened(grouped_keys(heads)),
        )
    if report.is_complete or is_partial or not strict:
        level = logging.INFO if report.is_complete or is_partial else logging.WARNING
        logger.log(level, "Weights of %s:\n%s", path, report.table())
    if is_partial or not strict:
        if not report.matched:
            raise CheckpointMismatchError(f"no key of {path} fits the model:\n{report.table()}")
        return report
    if not report.is_complete:
        raise CheckpointMismatchError(
            f"the keys of {path} are not the model's:\n{report.table()}\n"
            "To start from the keys that match use train.init_checkpoint_strict=False; for weights "
            "of a backbone alone append ?matching_heuristics=True to the path; to rename keys use "
            "`tokendetr export-weights --convert`."
        )
    return report


def load_matching_weights(
    checkpointer: Checkpointer, path: str, *, choice: Choice = "model"
) -> tuple[LoadReport, bool]:
    """Load those weights of a checkpoint that match, however few they are.

    Args:
        checkpointer: see :func:`load_weights`, as the other arguments.
        path: the checkpoint.
        choice: the model's weights or their moving average.

    Returns:
        The tensors by how they match, and True if the file is of a part of a model.

    Raises:
        FileNotFoundError, CheckpointError: see :func:`load_weights`.
    """
    require_checkpoint(path)
    reporting = _Reporting(path, choice)
    reporting.watch(checkpointer)
    try:
        checkpointer.load(path, checkpointables=[])
    finally:
        del checkpointer._load_model  # the instance's wrapper; the class's method is back
    return reporting.report(checkpointer.model), reporting.is_partial


def compare_weights(model: nn.Module, weights: Mapping[str, Any]) -> LoadReport:
    """Compare names and shapes of weights with a model's as they are, without loading them."""
    return compared(model.state_dict(), _shapes(weights), repeated=_repeated(weights))


def fit_report(model: nn.Module, weights: Mapping[str, Any]) -> LoadReport:
    """Report which weights of a whole model :func:`load_weights` would load, without loading them.

    Args:
        model: the model.
        weights: tensors or arrays by name; renamed as for a load.
    """
    converted = _converted(_unwrapped(weights), model)
    own = model.state_dict()
    return compared(own, _shapes(_with_aliases(converted, own)), repeated=_repeated(converted))


def _repeated(weights: Mapping[str, Any]) -> set[str]:
    """Return the further names of tensors that a file has under several names."""
    groups = alias_groups({name: torch.as_tensor(v) for name, v in _unwrapped(weights).items()})
    return {name for names in groups for name in names[1:]}


def _unwrapped(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("module."): value for key, value in weights.items()}


def _shapes(weights: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the keys without DDP's prefix, and the shapes; () for what is not a tensor."""
    return {k: tuple(getattr(value, "shape", ())) for k, value in _unwrapped(weights).items()}


@torch.no_grad()
def _converted(weights: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Remove the file's own prefix, and let submodules rename published weights.

    Modules rename them by a method ``convert_weights``.
    """
    converted = _without_prefix(dict(weights), model)
    for module in model.modules():
        convert = getattr(module, "convert_weights", None)
        if convert is not None:
            converted = convert(converted)
    return converted


def _without_prefix(weights: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Remove a prefix that all keys share but the model lacks, if at least half of the rest match.

    Training programs wrap detectors in modules of their own (``model.``, ``detector.module.``). One
    key outside of the prefix keeps it on all keys.
    """
    own = model.state_dict().keys()
    prefix = os.path.commonprefix([f"{key.rpartition('.')[0]}." for key in weights])
    prefix = prefix[: prefix.rfind(".") + 1]
    stripped = {key.removeprefix(prefix): value for key, value in weights.items()}
    is_new = not any(key.startswith(prefix) for key in own)
    if not prefix or not is_new or len(own & stripped.keys()) * 2 < len(stripped):
        return weights
    logger.info("All weights of the file have the prefix '%s'; it is removed", prefix)
    return stripped


def _with_aliases(weights: Mapping[str, Any], model_state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Complete the keys of a tensor that the model has under several names.

    Some codes save shared heads under one name only. Any name that is present stands for all, so
    that a strict load does not report the others as missing.
    """
    completed = dict(weights)
    for names in alias_groups(model_state):
        stored = next((name for name in names if name in weights), None)
        if stored is not None:
            for name in names:
                completed.setdefault(name, weights[stored])
    return completed
