"""Load weights into models and report which keys match."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from tabulate import tabulate
from torch import Tensor, nn

from tokendetr.checkpoint.averaged import Choice, chosen_weights
from tokendetr.checkpoint.backbone_weights import as_backbone
from tokendetr.checkpoint.finite import refuse_unusable_weights
from tokendetr.checkpoint.key_names import common_prefix, grouped_keys
from tokendetr.checkpoint.reading import how_it_is_made, read_checkpoint
from tokendetr.checkpoint.safetensors import alias_groups, load_safetensors, save_safetensors
from tokendetr.errors import CheckpointError, CheckpointMismatchError

__all__ = [
    "LoadReport",
    "compare_weights",
    "load_safetensors",
    "load_weights",
    "read_checkpoint",
    "save_safetensors",
]

logger = logging.getLogger(__name__)

_SHOWN = 6
_SHOWN_CHARACTERS = 120
_CLASS_HEADS = re.compile(r"(^|\.)(class_embed|label_enc|label_embed|cls_score|enc_score)\b")


# --------------------------------------------------------------------------------- loading


@dataclass
class LoadReport:
    """Comparison of a checkpoint's keys with a model's.

    Attributes:
        matched: keys with equal shapes in both.
        missing: keys of the model that the checkpoint lacks.
        unexpected: keys of the checkpoint that the model lacks.
        wrong_shape: (key, shape in the checkpoint, shape in the model).
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """True if every key fits."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def take_class_heads(self) -> list[str]:
        """Remove and return the class heads that differ in the number of classes, if all else fits.

        The model keeps its own weights for them.
        """
        heads = [key for key, file, own in self.wrong_shape if _is_class_head(key, file, own)]
        others = self.missing or self.unexpected or len(heads) < len(self.wrong_shape)
        if others or not heads:
            return []
        self.wrong_shape = []
        return heads

    def table(self) -> str:
        """Return a table of the number of keys of each kind, with the first few.

        A prefix that separates most of the file's keys from the model's is named below it.
        """
        shapes = [
            f"{k}: {list(a)} in the file, {list(b)} in the model" for k, a, b in self.wrong_shape
        ]
        rows = [
            ("matched", len(self.matched), _shortened(grouped_keys(self.matched))),
            ("missing in the file", len(self.missing), _shortened(grouped_keys(self.missing))),
            (
                "unexpected in the file",
                len(self.unexpected),
                _shortened(grouped_keys(self.unexpected)),
            ),
            ("wrong shape", len(shapes), _shortened(shapes)),
        ]
        return tabulate(rows, headers=("keys", "number", "which"), tablefmt="pipe") + self._hint()

    def _hint(self) -> str:
        prefix, count = common_prefix(self.missing, self.unexpected)
        if not prefix:
            return ""
        rest = [key for key in self.unexpected if not key.startswith(prefix)]
        others = f"; not so {_shortened(grouped_keys(rest))}" if rest else ""
        return (
            f"\nWithout the prefix '{prefix}', {count} of {len(self.unexpected)} unexpected keys "
            f"are missing ones{others}"
        )


def _is_class_head(key: str, file: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Return whether a tensor belongs to a class head and differs in its first dimension alone."""
    same_rest = len(file) == len(own) > 0 and file[1:] == own[1:]
    return same_rest and _CLASS_HEADS.search(key) is not None


def _shortened(names: list[str]) -> str:
    shown: list[str] = []
    for name in names[:_SHOWN]:
        if shown and sum(map(len, shown)) + len(name) > _SHOWN_CHARACTERS:
            break
        middle = _SHOWN_CHARACTERS // 2 - 2
        is_long = len(name) > _SHOWN_CHARACTERS
        shown.append(f"{name[:middle]} ... {name[-middle:]}" if is_long else name)
    more = f", and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more


class _Reporting:
    """Select and convert the weights that a checkpointer loads, and record which keys match."""

    def __init__(self, path: str, choice: Choice) -> None:
        self.path = path
        self.choice = choice
        self.incompatible: Any = None
        self.file_keys: set[str] = set()
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
            self.file_keys = {key.removeprefix("module.") for key in weights}
            if not self.is_partial:
                self._take_whole(checkpoint, weights, checkpointer.model.state_dict())
            refuse_unusable_weights(self.path, checkpoint["model"], checkpointer.model)
            self.incompatible = load_model(checkpoint)
            return None

        checkpointer._load_model = watched

    def _take_whole(
        self, checkpoint: Any, weights: dict[str, Any], model_state: Mapping[str, Tensor]
    ) -> None:
        """Prepare the weights of a whole model, or of a bare backbone recognized by its names."""
        backbone = as_backbone(
            {key.removeprefix("module."): value for key, value in weights.items()}, model_state
        )
        if backbone is None:
            checkpoint["model"] = _with_aliases(weights, model_state)
            return
        logger.info("The file has the weights of a bare backbone; loading them as 'backbone.*'")
        self.is_partial = True
        self.file_keys = set(backbone)
        checkpoint["model"] = backbone


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
        The keys by how they match.

    Raises:
        FileNotFoundError: no such file; for weights of this project the message says how they are
            made.
        CheckpointMismatchError: keys do not match; the message has a table of them, and says how to
            load the file anyway.
        CheckpointError: the average is requested, and the file has none; or weights that the model
            would load are NaN or infinite (:mod:`tokendetr.checkpoint.finite`).
    """
    file = path.partition("?")[0]
    if "://" not in file and not os.path.isfile(file):
        raise FileNotFoundError(f"checkpoint {file} not found{how_it_is_made(file)}")
    reporting = _Reporting(path, choice)
    reporting.watch(checkpointer)
    try:
        checkpointer.load(path, checkpointables=[])
    finally:
        del checkpointer._load_model  # the instance's wrapper; the class's method is back
    report = _report(checkpointer.model, reporting.incompatible, reporting.file_keys)
    if new_classes and (heads := report.take_class_heads()):
        logger.warning(
            "%s has another number of classes: %s keep their initial weights",
            path,
            _shortened(grouped_keys(heads)),
        )
    if report.is_complete or reporting.is_partial or not strict:
        is_expected = report.is_complete or reporting.is_partial
        level = logging.INFO if is_expected else logging.WARNING
        logger.log(level, "Weights of %s:\n%s", path, report.table())
    if reporting.is_partial or not strict:
        if not report.matched:
            raise CheckpointMismatchError(f"no key of {path} fits the model:\n{report.table()}")
        return report
    if not report.is_complete:
        raise CheckpointMismatchError(
            f"{path} is a checkpoint of another model:\n{report.table()}\n"
            "To start from the keys that match use train.init_checkpoint_strict=False; for weights "
            "of a backbone alone append ?matching_heuristics=True to the path; to rename keys use "
            "`tokendetr export-weights --convert`."
        )
    return report


def compare_weights(model: nn.Module, weights: Mapping[str, Any]) -> LoadReport:
    """Compare the keys and shapes of weights with a model's, without loading them."""
    own = model.state_dict()
    given = {key.removeprefix("module."): value for key, value in weights.items()}
    report = LoadReport(missing=[key for key in own if key not in given])
    for key, value in given.items():
        if key not in own:
            report.unexpected.append(key)
        elif tuple(value.shape) != tuple(own[key].shape):
            report.wrong_shape.append((key, tuple(value.shape), tuple(own[key].shape)))
        else:
            report.matched.append(key)
    return report


def _report(model: nn.Module, incompatible: Any, file_keys: set[str]) -> LoadReport:
    # Batch norms' counters may be absent: old versions of torch did not save them.
    keys = [
        key
        for key in model.state_dict()
        if key in file_keys or not key.endswith("num_batches_tracked")
    ]
    missing = set(incompatible.missing_keys)
    wrong = [(k, tuple(a), tuple(b)) for k, a, b in incompatible.incorrect_shapes]
    wrong_names = {name for name, _, _ in wrong}
    missing -= wrong_names
    return LoadReport(
        matched=[k for k in keys if k not in missing and k not in wrong_names],
        missing=[k for k in keys if k in missing],
        unexpected=sorted(incompatible.unexpected_keys),
        wrong_shape=wrong,
    )


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
