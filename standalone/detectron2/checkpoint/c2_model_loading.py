"""Match the keys of a checkpoint to those of a model when their names differ."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fvcore.common.checkpoint import (
    get_missing_parameters_message,
    get_unexpected_parameters_message,
)
from tabulate import tabulate
from torch import Tensor

__all__ = ["align_and_update_state_dicts", "convert_basic_c2_names", "convert_c2_detectron_names"]

# Caffe2 separates the parts of a name by underscores and calls batch and group norms bn and gn,
# with scale s, running mean rm and running inverse variance riv. A residual block has branch1
# (the shortcut) and branch2a, 2b, 2c. Order matters: each rule sees the result of those before it.
_C2_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^pred_([bw])$", r"linear_\1"),
        (r"_", "."),
        (r"\.b$", ".bias"),
        (r"\.w$", ".weight"),
        (r"bn\.s$", "norm.weight"),
        (r"bn\.bias$", "norm.bias"),
        (r"bn\.rm", "norm.running_mean"),
        (r"bn\.running\.mean$", "norm.running_mean"),
        (r"bn\.riv$", "norm.running_var"),
        (r"bn\.running\.var$", "norm.running_var"),
        (r"bn\.gamma$", "norm.weight"),
        (r"bn\.beta$", "norm.bias"),
        (r"gn\.s$", "norm.weight"),
        (r"gn\.bias$", "norm.bias"),
        (r"^res\.conv1\.norm\.", "conv1.norm."),
        (r"^conv1\.", "stem.conv1."),
        (r"\.branch1\.", ".shortcut."),
        (r"\.branch2a\.", ".conv1."),
        (r"\.branch2b\.", ".conv2."),
        (r"\.branch2c\.", ".conv3."),
        (r"^fpn\.inner\.res(\d)\.\d+\.sum\.lateral\.(norm\.)?", r"fpn_lateral\1.\2"),
        (r"^fpn\.res(\d)\.\d+\.sum\.(norm\.)?", r"fpn_output\1.\2"),
    )
)


def convert_basic_c2_names(original_keys: Iterable[str]) -> list[str]:
    """Translate Caffe2's names of backbone and FPN weights into those used here, in order."""
    converted = []
    for key in original_keys:
        for pattern, replacement in _C2_RULES:
            key = pattern.sub(replacement, key)
        converted.append(key)
    return converted


def convert_c2_detectron_names(
    weights: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Rename Caffe2 weights.

    Returns:
        The weights under their new names, and the old name of every new one.
    """
    logging.getLogger(__name__).info("These weights have Caffe2's names, which become detectron2's")
    old_names = sorted(weights)
    new_names = convert_basic_c2_names(old_names)
    assert len(set(new_names)) == len(new_names), "two Caffe2 weights got the same name"
    renamed = {new: weights[old] for new, old in zip(new_names, old_names, strict=True)}
    return renamed, dict(zip(new_names, old_names, strict=True))


def _longest_suffix(model_key: str, ckpt_keys: set[str]) -> str | None:
    """Return the longest checkpoint key that is the model's key or ends it after a dot."""
    while model_key not in ckpt_keys:
        _, dot, model_key = model_key.partition(".")
        if not dot:
            return None
    return model_key


def align_and_update_state_dicts(
    model_state_dict: Mapping[str, Tensor],
    ckpt_state_dict: Mapping[str, Any],
    c2_conversion: bool = True,
) -> dict[str, Any]:
    """Rename the keys of a checkpoint after the model's.

    Weights of a part (``res2.0.conv1.weight``) are found under any prefix in the model
    (``backbone.res2.0.conv1.weight``). Every key of the model takes the longest checkpoint key that
    it ends with; keys whose shapes differ are not loaded.

    Args:
        model_state_dict: the state dict of the model; not changed.
        ckpt_state_dict: name to tensor.
        c2_conversion: translate Caffe2's names first.

    Returns:
        Weights under the model's names; those that fit no key of the model keep their own.

    Raises:
        ValueError: one key of the checkpoint fits several of the model.
    """
    logger = logging.getLogger(__name__)
    if c2_conversion:
        weights, original = convert_c2_detectron_names(ckpt_state_dict)
    else:
        weights = dict(ckpt_state_dict)
        original = {key: key for key in weights}
    available = set(weights)
    result: dict[str, Any] = {}
    taken: dict[str, str] = {}
    rows = []
    for model_key in sorted(model_state_dict):
        ckpt_key = _longest_suffix(model_key, available)
        if ckpt_key is None:
            continue
        value, wanted = weights[ckpt_key], model_state_dict[model_key]
        if tuple(value.shape) != tuple(wanted.shape):
            logger.warning(
                f"{model_key} is not loaded: it has shape {tuple(wanted.shape)}, and "
                f"{original[ckpt_key]} in the file {tuple(value.shape)}."
            )
            continue
        if ckpt_key in taken:
            raise ValueError(
                f"{original[ckpt_key]} in the file fits two weights of the model: "
                f"{taken[ckpt_key]} and {model_key}."
            )
        taken[ckpt_key] = model_key
        result[model_key] = value
        rows.append((model_key, original[ckpt_key], tuple(wanted.shape)))

    if rows:
        headers = ("Names in Model", "Names in the File", "Shapes")
        table = tabulate(rows, headers=headers, tablefmt="pipe")
        logger.info("Weights that were found in the file:\n" + table)
    missing = [key for key in sorted(model_state_dict) if key not in result]
    if missing:
        logger.info(get_missing_parameters_message(missing))
    left = [key for key in sorted(weights) if key not in taken]
    if left:
        logger.info(get_unexpected_parameters_message([original[key] for key in left]))
    for key in left:
        # never under a name of the model: those weights do not fit it
        if key not in model_state_dict:
            result[key] = weights[key]
    return result
