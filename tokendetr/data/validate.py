"""Validate the data sets of a config before training; faults are reported by file and record."""

import difflib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig, OmegaConf

from tokendetr.data.coco_check import read_coco, validate_coco
from tokendetr.errors import DatasetError

__all__ = [
    "CocoFiles",
    "class_fault",
    "class_names",
    "coco_files",
    "compare_parts",
    "dataset_names",
    "model_classes",
    "read_coco",
    "validate_coco",
    "validate_config_data",
    "validate_registered",
]

logger = logging.getLogger(__name__)


def validate_config_data(cfg: Any, *, evaluation_only: bool = False) -> None:
    """Validate the data sets that a config names.

    ``train.validate_data`` decides what happens to faults: ``"strict"`` raises an error, ``"warn"``
    logs them, ``"off"`` skips the checks. Rank 0 checks; all ranks raise.

    Args:
        cfg: the whole config.
        evaluation_only: skip the training set.

    Raises:
        DatasetError: there is a fault, a name is unknown, or the classes of data sets, model and
            evaluator differ.
        FileNotFoundError: annotations do not exist.
    """
    mode = str(OmegaConf.select(cfg, "train.validate_data", default="strict"))
    if mode not in ("strict", "warn", "off"):
        raise DatasetError(f"train.validate_data={mode!r}: use strict, warn or off")
    if mode == "off":
        return
    failure: Exception | None = None
    if comm.is_main_process():
        try:
            for name, for_evaluation in dataset_names(cfg, evaluation_only=evaluation_only):
                validate_registered(cfg, name, for_evaluation)
            compare_parts(cfg, evaluation_only=evaluation_only)
        except (DatasetError, FileNotFoundError) as error:
            failure = error
    message = comm.all_gather(None if failure is None else str(failure))[0]
    if message is None:
        return
    if mode == "warn":
        logger.warning("%s", message)
        return
    raise failure or DatasetError(message)


def dataset_names(cfg: Any, *, evaluation_only: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield (name, is for evaluation) of every data set of a config."""
    parts = [("test", True)] if evaluation_only else [("train", False), ("test", True)]
    for part, for_evaluation in parts:
        names = OmegaConf.select(cfg, f"dataloader.{part}.dataset.names", default=None) or []
        for name in [names] if isinstance(names, str) else names:
            yield str(name), for_evaluation


def model_classes(cfg: Any) -> int | None:
    """Return ``model.num_classes``, None if the config has none."""
    value = OmegaConf.select(cfg, "model.num_classes", default=None)
    return value if isinstance(value, int) else None


@dataclass(frozen=True)
class CocoFiles:
    """Files of a registered COCO-format data set.

    Attributes:
        json_file: the annotations.
        image_root: folder of the images.
        has_file_names: False for LVIS, whose file names come from URLs.
    """

    json_file: str
    image_root: str
    has_file_names: bool


def coco_files(name: str) -> CocoFiles | None:
    """Return the files of a registered data set, None if it is not in COCO's format.

    Generated data sets (shapes) are generated first.

    Raises:
        DatasetError: nothing is registered under the name; the message has similar ones.
    """
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise DatasetError(
            f"no data set is registered as {name!r}{hint or '.'} Register it in your config with "
            "detectron2.data.datasets.register_coco_instances(name, {}, json_file, image_root)."
        )
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file", None)
    kind = metadata.get("evaluator_type", "coco")
    if json_file is None or kind not in ("coco", "lvis"):
        return None
    prepare = metadata.get("prepare", None)
    if prepare is not None:
        prepare()
    return CocoFiles(str(json_file), str(metadata.image_root), kind == "coco")


def validate_registered(cfg: Any, name: str, for_evaluation: bool) -> None:
    """Validate a data set of a config for its use in training or evaluation.

    Args:
        cfg: the whole config.
        name: name of the registered data set.
        for_evaluation: the evaluation uses it; False for training.

    Raises:
        DatasetError, FileNotFoundError: see :func:`validate_coco`.
    """
    files = coco_files(name)
    if files is None:
        return
    part = "test" if for_evaluation else "train"
    filters = OmegaConf.select(cfg, f"dataloader.{part}.dataset.filter_empty", default=True)
    validate_coco(
        files.json_file,
        files.image_root,
        name=name,
        for_evaluation=for_evaluation,
        for_training=not for_evaluation and bool(filters),
        num_classes=model_classes(cfg),
        has_file_names=files.has_file_names,
        needs_masks=not for_evaluation and _uses_masks(cfg),
        needs_polygons=not for_evaluation and _uses_masks(cfg) and not _reads_run_lengths(cfg),
        image_roots=OmegaConf.select(cfg, "train.image_roots", default=None) or (),
    )


def _uses_masks(cfg: Any) -> bool:
    """Return whether the training mapper passes on masks."""
    mapper = "dataloader.train.mapper"
    return any(
        OmegaConf.select(cfg, f"{mapper}.{key}", default=False) is True
        for key in ("mask_on", "use_instance_mask")
    )


def _reads_run_lengths(cfg: Any) -> bool:
    """Return whether the training mapper decodes masks to bitmaps."""
    key = "dataloader.train.mapper.instance_mask_format"
    return OmegaConf.select(cfg, key, default="polygon") == "bitmask"


# ------------------------------------------------------------------- consistency of classes


def compare_parts(cfg: Any, *, evaluation_only: bool = False) -> None:
    """Check that training set, test set, model and evaluator of a config have the same classes.

    Raises:
        DatasetError: classes are numbered differently; a data set is registered under the name of
            one with other classes; or evaluator and loader use different data sets.
    """
    named = [name for name, _ in dataset_names(cfg, evaluation_only=evaluation_only)]
    classes = [(name, names) for name in named if (names := _class_names(name)) is not None]
    for name, names in classes[1:]:
        fault = class_fault(*classes[0], name, names)
        if fault:
            raise DatasetError(fault)
    num_classes = model_classes(cfg)
    for name, names in classes:
        if num_classes is not None and coco_files(name) is not None and len(names) < num_classes:
            raise DatasetError(
                f"{name} has {len(names)} categories, but the model has num_classes={num_classes}: "
                f"some predictions could not be evaluated; set model.num_classes={len(names)}"
            )
    _compare_evaluator(cfg)


def class_fault(name: str, names: Sequence[str], other: str, others: Sequence[str]) -> str:
    """Return how the numbering of two data sets' classes differs, "" if it does not.

    Args:
        name: name of the first data set.
        names: its classes in order.
        other: name of the second data set.
        others: its classes in order.
    """
    for index, (one, two) in enumerate(zip(names, others, strict=False)):
        if one != two:
            return (
                f"class {index} is {one!r} in {name} but {two!r} in {other}: give both files the "
                "same categories with the same ids"
            )
    if len(names) != len(others):
        return (
            f"{name} has {len(names)} categories, {other} {len(others)}: give both files the same "
            "categories with the same ids"
        )
    return ""


def _class_names(name: str) -> list[str] | None:
    """Return the classes of a registered data set in order; None if they are unknown."""
    files = coco_files(name)
    known = MetadataCatalog.get(name).get("thing_classes", None)
    if files is None:
        return None if known is None else list(known)
    names = class_names(files.json_file, has_file_names=files.has_file_names)
    # LVIS's registered names are the first synonyms, not the categories' names.
    if known is not None and files.has_file_names and list(known) != names:
        raise DatasetError(
            f"{files.json_file} has {len(names)} classes ({', '.join(names[:3])}, ...), but "
            f"{name!r} is the name of a data set with {len(known)} classes "
            f"({', '.join(known[:3])}, ...): register your own name with register_coco_instances"
        )
    return names


def class_names(json_file: str, *, has_file_names: bool = True) -> list[str]:
    """Return a data set's class names in the order of class indices, which is that of ids."""
    categories = read_coco(json_file, has_file_names=has_file_names)["categories"]
    return [category["name"] for category in sorted(categories, key=lambda c: c["id"])]


def _compare_evaluator(cfg: Any) -> None:
    tested = [name for name, is_test in dataset_names(cfg, evaluation_only=True) if is_test]
    evaluators = list(_named_nodes(OmegaConf.select(cfg, "dataloader.evaluator", default=None)))
    for key, evaluated in evaluators if tested else []:
        if len(tested) > 1:
            raise DatasetError(
                f"dataloader.test has {len(tested)} data sets ({', '.join(tested)}), but "
                f"dataloader.evaluator uses only {evaluated!r}: evaluate one after the other"
            )
        if _annotation_file(evaluated) != _annotation_file(tested[0]):
            raise DatasetError(
                f"dataloader.test uses {tested[0]!r}, but dataloader.evaluator "
                f"{evaluated!r}: set {key}={tested[0]}"
            )


def _named_nodes(node: Any, key: str = "dataloader.evaluator") -> Iterator[tuple[str, str]]:
    """Yield key and value of every ``dataset_name`` of evaluators, also of nested ones."""
    if isinstance(node, DictConfig):
        for name in list[Any](node):
            if OmegaConf.is_missing(node, name):
                continue
            if name == "dataset_name":
                yield f"{key}.{name}", str(node[name])
            else:
                yield from _named_nodes(node[name], f"{key}.{name}")
    elif isinstance(node, ListConfig):
        for index, item in enumerate(node):
            yield from _named_nodes(item, f"{key}.{index}")


def _annotation_file(name: str) -> str:
    return str(MetadataCatalog.get(name).get("json_file", name))
