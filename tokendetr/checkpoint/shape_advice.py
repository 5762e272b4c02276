"""Which setting of a config explains a tensor of another shape."""

import re
from collections.abc import Sequence

from tokendetr.checkpoint.key_names import shortened

__all__ = ["WrongShape", "is_class_head", "shape_advice"]

WrongShape = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Name, shape in the file, shape in the model."""

_CLASS_HEADS = re.compile(
    r"(^|\.)(class_embed|label_enc|label_encoder|label_embed|cls_score|enc_score)\b"
)
_SETTINGS = (
    (
        re.compile(r"(^|\.)(tgt_embed|refpoint_embed|query_embed|query_embedding)\b"),
        "the number of queries (model.num_queries; of H-Deformable DETR num_queries_one2one and "
        "num_queries_one2many)",
    ),
    (
        re.compile(r"(^|\.)level_embeds$"),
        "the number of feature levels (a 4scale or 5scale config)",
    ),
    (
        re.compile(r"\.(sampling_offsets|attention_weights)\b"),
        "heads, feature levels or sampled points of the attention (num_heads, num_feature_levels, "
        "num_points of model.transformer.encoder and .decoder)",
    ),
)
"""Names of tensors whose first dimension a setting determines, and the setting."""

_OTHER = "the width of a layer, or the backbone: name the config that the file was trained with"


def is_class_head(entry: WrongShape) -> bool:
    """Return whether a tensor belongs to a class head and differs in its first dimension alone."""
    return _differs_in_first(entry) and _CLASS_HEADS.search(entry[0]) is not None


def shape_advice(wrong: Sequence[WrongShape]) -> list[str]:
    """Return a line for each kind of tensors of another shape: which setting determines it.

    Args:
        wrong: the tensors of another shape.
    """
    kinds: dict[str, list[str]] = {}
    for entry in wrong:
        kinds.setdefault(_setting(entry), []).append(entry[0])
    classes = [entry for entry in wrong if is_class_head(entry)]
    lines = []
    for setting, names in kinds.items():
        value = _number_of_classes(classes) if setting == "classes" else setting
        lines.append(f"Another shape: {shortened(names)}: {value}")
    return lines


def _setting(entry: WrongShape) -> str:
    if is_class_head(entry):
        return "classes"
    if not _differs_in_first(entry):
        return _OTHER
    return next((text for name, text in _SETTINGS if name.search(entry[0])), _OTHER)


def _number_of_classes(heads: Sequence[WrongShape]) -> str:
    """Return the override of the number of classes; label embeddings may have one row more."""
    scored = [entry for entry in heads if "class_embed" in entry[0]] or heads
    return f"the number of classes (model.num_classes={scored[0][1][0]} for the file's)"


def _differs_in_first(entry: WrongShape) -> bool:
    _, file, own = entry
    return len(file) == len(own) > 0 and file[1:] == own[1:]
